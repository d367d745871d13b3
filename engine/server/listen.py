"""Bind listening sockets, and explain why an address cannot be bound. Every port uses this."""

import errno
import socket
from contextlib import ExitStack


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for each address that `host` stands for, all on one port.

    Args:
        host: a name or an address; an IPv6 address may be in brackets.
        port: the TCP port; 0 takes a free one.

    Raises:
        OSError: an address cannot be bound.
    """
    resolved = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    addresses = dict.fromkeys((family, address) for family, _, _, _, address in resolved)
    sockets: list[socket.socket] = []
    with ExitStack() as opened:
        for family, address in addresses:
            # asyncio sets TCP_NODELAY only on sockets that say that they are TCP. Without it, the
            # second part of a reply waits for the client's delayed ACK: 40 ms.
            tcp = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            bound = opened.enter_context(tcp)
            # This lets a server start again at once, while connections of the previous one are in
            # TIME_WAIT. A second server on the port still fails.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6 and len(addresses) > 1:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # The addresses after the first take the port that the first was given.
            same_port = port or (sockets[0].getsockname()[1] if sockets else 0)
            bound.bind((address[0], same_port, *address[2:]))
            sockets.append(bound)
        opened.pop_all()
    return sockets


def cannot_listen(host: str, option: str, port: int, error: object) -> str:
    """Return the error message for an address that cannot be bound.

    Args:
        host: the address.
        option: the option of the port, such as "--port".
        port: the TCP port.
        error: the cause.
    """
    options = f"--host {host} {option} {port}: "
    if not isinstance(error, OSError):
        return f"{options}{error}"
    hint = (
        f"; stop the other server, or choose another {option}"
        if error.errno == errno.EADDRINUSE
        else ""
    )
    return f"{options}cannot listen there: {error.strerror or error}{hint}"
