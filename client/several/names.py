"""The DNS names among the addresses of a client: when to look each one up, and what was found.

`DnsNames` makes no look-ups itself. It is not safe to share between threads; `Servers` has a lock.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kwise.client.several.targets import dns_name

_LOOK_UP_AGAIN_S = 30.0  # a name, while all its servers are up
_LOOK_UP_PAUSE_S = 5.0  # between two look-ups of a name, when a server has failed
_LOOK_UP_TIMEOUT_S = 60.0  # a look-up without an answer is made again

_log = logging.getLogger("kwise.client")


@dataclass(slots=True)
class _Name:
    """A DNS name. `addresses` is None until a look-up has ended."""

    host: str
    port: str
    look_up_at: float
    looked_up_at: float | None = None
    addresses: tuple[str, ...] | None = None
    cause: str = ""


class DnsNames:
    """The names among `targets`, each with the addresses that it had last.

    Args:
        targets: the addresses of the client, from `check_targets`.
        now: a clock, in seconds.
    """

    def __init__(self, targets: Sequence[str], now: Callable[[], float]) -> None:
        self._targets = tuple(targets)
        self._now = now
        self._names = {
            target: _Name(host=name[0], port=name[1], look_up_at=now())
            for target in targets
            if (name := dns_name(target)) is not None
        }

    def __bool__(self) -> bool:
        """True if a target is a DNS name."""
        return bool(self._names)

    def copy(self) -> "DnsNames":
        """Return a copy for another client, which makes the look-ups that now run by itself."""
        other = DnsNames(self._targets, self._now)
        for target, name in self._names.items():
            look_up_at = self._now() if name.addresses is None else name.look_up_at
            other._names[target] = replace(name, look_up_at=look_up_at)
        return other

    @property
    def addresses(self) -> list[str]:
        """The addresses of all targets in their order, each once: of a name, those last found."""
        addresses: dict[str, None] = {}
        for target in self._targets:
            name = self._names.get(target)
            addresses |= dict.fromkeys([target] if name is None else name.addresses or ())
        return list(addresses)

    def authority_of(self, address: str) -> str:
        """Return HOST:PORT of the name that an address was found for; "" for another address."""
        for name in self._names.values():
            if address in (name.addresses or ()):
                return f"{name.host}:{name.port}"
        return ""

    def to_look_up(self) -> list[tuple[str, str, str]]:
        """Return (target, host, port) of the names to look up now."""
        due = []
        for target, name in self._names.items():
            if name.look_up_at <= self._now():
                name.look_up_at = self._now() + _LOOK_UP_TIMEOUT_S
                due.append((target, name.host, name.port))
        return due

    def found(self, target: str, addresses: tuple[str, ...], cause: str = "") -> bool:
        """Store the addresses of a name. If the look-up found none, keep the earlier ones.

        Args:
            target: the name, as `to_look_up` returned it.
            addresses: what was found.
            cause: why the look-up failed; "" if it did not.

        Returns:
            True if the addresses of the name have changed.
        """
        name = self._names[target]
        name.looked_up_at = self._now()
        name.cause = cause or ("" if addresses else "it has no address")
        again_s = _LOOK_UP_PAUSE_S if name.cause else _LOOK_UP_AGAIN_S
        name.look_up_at = self._now() + again_s
        if name.cause and name.addresses is None:
            name.addresses = ()
        if name.cause or addresses == name.addresses:
            return False
        if name.addresses:
            _log.info("%s has the addresses %s", target, ", ".join(addresses))
        name.addresses = addresses
        return True

    def server_failed(self, address: str) -> None:
        """Look up the name of a failed server sooner: it may have another address now."""
        for name in self._names.values():
            if name.looked_up_at is not None and address in (name.addresses or ()):
                name.look_up_at = min(name.look_up_at, name.looked_up_at + _LOOK_UP_PAUSE_S)

    @property
    def next_look_ups(self) -> list[float]:
        """The time of the next look-up of each name, on the clock `now`."""
        return [name.look_up_at for name in self._names.values()]

    @property
    def is_known(self) -> bool:
        """True if a look-up of each name has ended."""
        return all(name.addresses is not None for name in self._names.values())

    @property
    def causes(self) -> list[str]:
        """Each name whose last look-up failed, with the cause, for messages."""
        return [f"{target}: {name.cause}" for target, name in self._names.items() if name.cause]
