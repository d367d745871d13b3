"""The servers of a client: which of them are up, and which one answers a prompt.

`Servers` makes no calls and has no threads. The clients tell it what they saw, and it decides:

    pick       the server of a prompt, among those that are up
    failed     a call found the server away: leave it out, and ask it again later
    to_ask     the servers to ask now whether they serve; `asked` takes each answer
    answered   whether a reply counts, or comes from another model than the other servers'
    to_look_up the DNS names to look up now; `found` takes their addresses

Prompts are hashed to the servers that are up (`kwise.rendezvous`). So all responses to a prompt
meet in the caches of one server, a server that goes away moves only its own prompts, and every
client with the same list of addresses chooses alike.

Two servers may serve different models for a while, in a rolling update. Their rewards are not
comparable. So a client uses the servers of one fingerprint, leaves out those of another, and
changes over once, when no server of the first one is left.

A single address that is not a DNS name has none of this (`alone`): gRPC's own channel waits for it.
docs/several-servers.md explains the choices.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from threading import RLock
from time import monotonic

from kwise.client.errors import RewardServiceError
from kwise.client.retry import Backoff
from kwise.client.several.names import DnsNames
from kwise.errors import Status
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.rendezvous import ranked
from kwise.types import ModelInfo

ASK_TIMEOUT_S = 5.0  # for one answer to "do you serve?"

# A server that answers with one of these is there, and waiting does not help.
_FINAL = (
    Status.NOT_FOUND,
    Status.UNIMPLEMENTED,
    Status.UNAUTHENTICATED,
    Status.PERMISSION_DENIED,
)

_log = logging.getLogger("kwise.client")


@dataclass(slots=True)
class _Server:
    """One server.

    Attributes:
        is_up: calls may go to it.
        was_asked: it has been seen up or away at least once.
        cause: why it is left out; None if it is up or was never asked.
        fingerprint: of the model that it served last; "" if it never told.
        ask_at: when to ask it next, if it is not up.
    """

    ask_at: float
    is_up: bool = False
    was_asked: bool = False
    cause: RewardServiceError | None = None
    fingerprint: str = ""
    backoff: Backoff = field(default_factory=Backoff)


class Servers:
    """The servers of one client. It can be shared between threads.

    Args:
        targets: the addresses, from `check_targets`.
        now: a clock, in seconds.

    Attributes:
        alone: the address of the only server, which is never left out; None if there may be others.
    """

    def __init__(self, targets: Sequence[str], now: Callable[[], float] = monotonic) -> None:
        self.targets = tuple(targets)
        self._now = now
        self._lock = RLock()
        self._fingerprint = ""  # of the servers that are used
        self._names = DnsNames(targets, now)
        self.alone = targets[0] if len(targets) == 1 and not self._names else None
        self._servers: dict[str, _Server] = {}
        self._renew()

    def copy(self) -> "Servers":
        """Return servers of which the same is known, for another client."""
        other = Servers(self.targets, self._now)
        with self._lock:
            other._fingerprint = self._fingerprint
            other._names = self._names.copy()
            other._renew()
            # The other client has to ask by itself the servers that this one asks now.
            for address, server in self._servers.items():
                other._servers[address] = replace(server, ask_at=self._now(), backoff=Backoff())
        return other

    # Addresses

    @property
    def label(self) -> str:
        """The addresses as the user gave them, for messages."""
        return ", ".join(self.targets)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of all servers, those of names included."""
        with self._lock:
            return tuple(self._servers)

    @property
    def usable(self) -> tuple[str, ...]:
        """The addresses of the servers that are up."""
        with self._lock:
            return tuple(address for address, server in self._servers.items() if server.is_up)

    def authority_of(self, address: str) -> str:
        """Return HOST:PORT of the name that an address was found for; "" for another address."""
        with self._lock:
            return self._names.authority_of(address)

    def to_look_up(self) -> list[tuple[str, str, str]]:
        """Return (target, host, port) of the names to look up now."""
        with self._lock:
            return self._names.to_look_up()

    def found(self, target: str, addresses: tuple[str, ...], cause: str = "") -> tuple[str, ...]:
        """Store the addresses of a name. If the look-up found none, keep the earlier ones.

        Args:
            target: the name, as `to_look_up` returned it.
            addresses: what was found.
            cause: why the look-up failed; "" if it did not.

        Returns:
            The addresses that are no longer servers of this client.
        """
        with self._lock:
            return self._renew() if self._names.found(target, addresses, cause) else ()

    def _renew(self) -> tuple[str, ...]:
        """Make the servers those of all addresses. Return the addresses that are gone."""
        before = self._servers
        self._servers = {
            address: before.get(address) or _Server(ask_at=self._now())
            for address in self._names.addresses
        }
        return tuple(before.keys() - self._servers.keys())

    # The choice

    def key(self, prompt: pb.Prompt) -> bytes:
        """Return what a prompt is hashed to servers by."""
        if self.alone is not None:
            return b""
        return blake2b(prompt.SerializeToString(deterministic=True), digest_size=16).digest()

    def pick(self, key: bytes) -> str | None:
        """Return the address of the server for a prompt; None while no server is up."""
        if self.alone is not None:
            return self.alone
        order = ranked(key, self.usable)
        return order[0] if order else None

    # What the clients saw

    def failed(self, address: str, failure: RewardServiceError) -> bool:
        """Leave the server out if `failure` says that it is away.

        Returns:
            True if so: another server may answer the same request at once.
        """
        if self.alone is not None or failure.status not in (Status.UNAVAILABLE, Status.CANCELLED):
            return False
        with self._lock:
            server = self._servers.get(address)
            if server is not None and server.is_up:
                self._leave_out(address, server, failure)
        return True

    def to_ask(self) -> list[str]:
        """Return the servers to ask now. One that never answers is asked again later."""
        due = []
        if self.alone is None:
            with self._lock:
                for address, server in self._servers.items():
                    if not server.is_up and server.ask_at <= self._now():
                        server.ask_at = self._now() + 2 * ASK_TIMEOUT_S
                        due.append(address)
        return due

    def asked(
        self, address: str, failure: RewardServiceError | None, fingerprint: str = ""
    ) -> None:
        """Take the answer of a server that was asked: `failure`, or the model that it serves."""
        with self._lock:
            server = self._servers.get(address)
            if server is None or server.is_up:
                return
            if failure is not None:
                if failure.status is Status.DEADLINE_EXCEEDED:
                    problem = f"it did not answer within {ASK_TIMEOUT_S:g} s"
                    failure = RewardServiceError(failure.code, problem, target=address)
                self._leave_out(address, server, failure)
                return
            server.was_asked = True
            server.fingerprint = fingerprint
            if self._is_other(fingerprint):
                self._leave_out(address, server, self._other_model(address, fingerprint))
                return
            if server.cause is not None:
                _log.info("%s is back", address)
            server.is_up, server.cause = True, None

    def answered(self, address: str, fingerprint: str) -> bool:
        """Return whether a reply counts. Otherwise the request belongs to another server."""
        if self.alone is not None:
            return True
        with self._lock:
            server = self._servers.get(address)
            if server is None:
                return not self._is_other(fingerprint)
            server.backoff.reset()
            if fingerprint == self._fingerprint:
                return True
            server.fingerprint, was_up, server.is_up = fingerprint, server.is_up, False
            if self._is_other(fingerprint):
                self._leave_out(address, server, self._other_model(address, fingerprint))
                return False
            server.is_up = was_up
            return True

    def _is_other(self, fingerprint: str) -> bool:
        """Return whether servers of another model are in use. Change over if none is left."""
        if not self._fingerprint or fingerprint == self._fingerprint:
            return False
        if self.usable:
            return True
        _log.warning("the servers' model changed from %s to %s", self._fingerprint, fingerprint)
        self._fingerprint = fingerprint
        return False

    def _other_model(self, address: str, fingerprint: str) -> RewardServiceError:
        problem = (
            f"it serves the model {fingerprint}, and the other servers serve {self._fingerprint}; "
            "their rewards are not comparable"
        )
        return RewardServiceError("FAILED_PRECONDITION", problem, target=address)

    def _leave_out(self, address: str, server: _Server, cause: RewardServiceError) -> None:
        now = self._now()
        if server.cause is None or server.cause.code != cause.code:
            _log.warning("%s is left out: %s: %s", address, cause.code, cause.message)
        server.is_up, server.was_asked, server.cause = False, True, cause
        server.ask_at = now + server.backoff.pause_s(None)
        if not self.usable:
            # A server of another model takes over as soon as it has been asked.
            for other in self._servers.values():
                if other.cause is not None and other.cause.code == "FAILED_PRECONDITION":
                    other.ask_at = min(other.ask_at, now)
        self._names.server_failed(address)

    def models(self, answers: Mapping[str, ModelInfo | RewardServiceError]) -> list[ModelInfo]:
        """Return the models among the answers of servers that are up, if they count.

        Raises:
            RewardServiceError: a server is not away and refuses to describe its model.
        """
        models = []
        for address, answer in answers.items():
            if isinstance(answer, ModelInfo):
                if self.answered(address, answer.fingerprint):
                    models.append(answer)
            elif answer.status is Status.DEADLINE_EXCEEDED:
                continue  # it is busy, and the others' answers are enough
            elif not self.failed(address, answer):
                raise answer
        return models

    # Waiting

    @property
    def next_s(self) -> float | None:
        """The seconds until there is something to ask or to look up; None if there is nothing."""
        if self.alone is not None:
            return None
        with self._lock:
            times = self._names.next_look_ups
            times += [server.ask_at for server in self._servers.values() if not server.is_up]
        return max(min(times) - self._now(), 0.0) if times else None

    @property
    def is_known(self) -> bool:
        """True if a server is up, and no server and no name is still to be asked."""
        with self._lock:
            return (
                bool(self.usable)
                and all(server.was_asked for server in self._servers.values())
                and self._names.is_known
            )

    def settle(self) -> None:
        """Choose the fingerprint to use, once the servers have been asked for the first time.

        Raises:
            RewardServiceError: they serve different models, so there is no ground to choose one
                (FAILED_PRECONDITION); names each server with its fingerprint.
        """
        with self._lock:
            if self._fingerprint:
                return
            up = {address: server for address, server in self._servers.items() if server.is_up}
            fingerprints = {server.fingerprint for server in up.values()}
            if len(fingerprints) > 1:
                for server in up.values():  # ask again at the next call
                    server.is_up, server.was_asked, server.ask_at = False, False, self._now()
                served = "; ".join(f"{address}: {up[address].fingerprint}" for address in up)
                raise RewardServiceError(
                    "FAILED_PRECONDITION",
                    "the servers serve different models, whose rewards are not comparable; name "
                    f"servers of one model: {served}",
                    target=self.label,
                )
            self._fingerprint = next(iter(fingerprints), "")

    @property
    def causes(self) -> str:
        """Each server with the cause why it is not up, for messages."""
        with self._lock:
            causes = self._names.causes + [
                f"{address}: {_cause_text(server.cause)}"
                for address, server in self._servers.items()
                if not server.is_up
            ]
        return "; ".join(causes)

    @property
    def refusal(self) -> RewardServiceError | None:
        """The error of a call that every server would refuse; None if there is hope."""
        with self._lock:
            causes = [server.cause for server in self._servers.values()]
            is_final = all(cause is not None and cause.status in _FINAL for cause in causes)
            if not causes or causes[0] is None or not is_final:
                return None
            return RewardServiceError(causes[0].code, self.causes, target=self.label)

    def none_up(self, waited_s: float) -> RewardServiceError:
        """Return the error of a call that found no server; names each one's cause."""
        problem = f"no server was ready within {waited_s:g} s: {self.causes}"
        return RewardServiceError("UNAVAILABLE", problem, target=self.label)


def _cause_text(cause: RewardServiceError | None) -> str:
    return "no answer yet" if cause is None else f"{cause.code}: {cause.message}"
