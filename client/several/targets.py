"""The addresses that a client is given: one, a list, or a name that stands for several.

    "a:50051"                  one server
    "a:50051,b:50051"          two servers; an option or an environment variable has this form
    ["a:50051", "b:50051"]     the same
    "dns:///name:50051"        a server for each address of the name, looked up again and again

A plain HOST:PORT is one server whatever its name resolves to, because "localhost" often has two
addresses of one server. gRPC tries them in turn.
"""

import re
import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any, TypeAlias

from kwise.client.channel import HOST_PORT, check_target
from kwise.errors import InvalidRequest

TargetLike: TypeAlias = str | Sequence[str]

_DNS_NAME = re.compile(rf"dns:(?:///)?(?P<address>{HOST_PORT.pattern})")


def check_targets(name: str, target: Any) -> tuple[str, ...]:
    """Return the addresses that `target` names.

    Args:
        name: the argument or option, for errors.
        target: an address, several with commas between them, or a sequence of addresses. The items
            of a sequence may have commas, as paths of sockets do.

    Raises:
        TypeError: it is neither a str nor a sequence of str.
        InvalidRequest: an item cannot be an address, one is named twice, or there is none.
    """
    if isinstance(target, str):
        items: list[Any] = (
            [item.strip() for item in target.split(",")] if "," in target else [target]
        )
    elif isinstance(target, Iterable) and not isinstance(target, bytes):
        items = list(target)
    else:
        raise TypeError(f"{name} must be a str or a sequence of str, not {type(target).__name__}")
    if not items:
        raise InvalidRequest(name, "has no address; give at least one HOST:PORT")
    names = [name] if len(items) == 1 else [f"{name}[{number}]" for number in range(len(items))]
    for item_name, item in zip(names, items, strict=True):
        check_target(item_name, item)
        if items.count(item) > 1:
            raise InvalidRequest(name, f"names {item} twice; name each server once")
    return tuple(items)


def dns_name(target: str) -> tuple[str, str] | None:
    """Return host and port of a "dns:" URI whose addresses kwise looks up itself.

    None stands for all other targets. An IP address needs no look-up, and a URI that names a DNS
    server ("dns://8.8.8.8/…") or has no port is left to gRPC, for which it is one server.
    """
    match = _DNS_NAME.fullmatch(target)
    if match is None:
        return None
    host, _, port = match["address"].rpartition(":")
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return host, port
    return None


def to_targets(found: Iterable[tuple[Any, ...]]) -> tuple[str, ...]:
    """Return the addresses that `getaddrinfo` found as URIs of gRPC, sorted and each once."""
    targets = set()
    for family, _, _, _, address in found:
        host, port = address[0], address[1]
        if family == socket.AF_INET:
            targets.add(f"ipv4:{host}:{port}")
        elif family == socket.AF_INET6:
            targets.add(f"ipv6:[{host.replace('%', '%25')}]:{port}")
    return tuple(sorted(targets))
