"""The channel to a kwise server, and the checks of arguments that both clients share."""

import re
import socket
from json import dumps
from typing import Any

from kwise.errors import InvalidRequest
from kwise.types import CLIENT_KEY

_MAX_MESSAGE_BYTES = 64 << 20

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "kwise.v1.RewardService"}],
            # Calls wait for a server that restarts, until their deadline, and retry.py repeats the
            # calls that it lost. The first connection is different: a server that never answered
            # may not exist, so the clients wait for it themselves, and for a shorter time.
            "waitForReady": True,
        }
    ]
}

Options = list[tuple[str, str | int]]

_OPTIONS: Options = [
    ("grpc.service_config", dumps(_SERVICE_CONFIG)),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A dead server is noticed after 80 s. The server permits a ping per second.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]
DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_CONNECT_TIMEOUT_S = 30.0
# A year. gRPC turns infinity, and much longer times, into deadlines in the past.
_MAX_TIMEOUT_S = 365 * 86_400

# The schemes of gRPC's resolvers, which check the rest of the URI:
# https://github.com/grpc/grpc/blob/master/doc/naming.md
_URI = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):\S.*")
# A port may be the name of a service, such as http.
HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+):(?P<port>[0-9]+|[A-Za-z][A-Za-z0-9-]*)")


def check_target(name: str, target: Any) -> str:
    """Return `target` if it has the form of an address.

    gRPC itself accepts nearly any string and waits: it reads "localhost" as port 443 of localhost.

    Raises:
        TypeError: it is not a str.
        InvalidRequest: it is neither HOST:PORT nor a URI of gRPC. The error names the argument.
    """
    if not isinstance(target, str):
        raise TypeError(f"{name} must be a str, not {type(target).__name__}")
    if target.isprintable() and _URI.fullmatch(target):
        return target
    address = HOST_PORT.fullmatch(target)
    if address is None:
        raise InvalidRequest(
            name,
            "must be HOST:PORT, with an IPv6 address in [], or a URI of gRPC (unix:PATH, "
            f"dns:///HOST:PORT), not {target[:100]!a}",
        )
    port = address["port"]
    if port.isdecimal() and (len(port) > 5 or not 0 < int(port) < 1 << 16):
        raise InvalidRequest(
            name, f"the port is {port[:20]}; it must be between 1 and {(1 << 16) - 1}"
        )
    if not port.isdecimal():
        try:
            socket.getservbyname(port)
        except OSError:
            raise InvalidRequest(
                name, f"the port is {port[:20]!r}; it must be a number or the name of a service"
            ) from None
    return target


def check_timeout(name: str, value: Any) -> float:
    """Return a timeout in seconds as a float.

    Raises:
        TypeError: it is not a number. The error names the argument.
        ValueError: it is NaN, not above 0, or longer than a year. The error names the argument.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 < value <= _MAX_TIMEOUT_S:  # false for NaN too
        raise ValueError(f"{name} must be above 0 and at most {_MAX_TIMEOUT_S} s, not {value:g}")
    return float(value)


def channel_options(authority: str) -> Options:
    """Return the options of a channel.

    Args:
        authority: HOST:PORT, whose host the server's certificate must name; "" for the address of
            the channel. An address that was looked up is an IP address, which no certificate has.
    """
    return [*_OPTIONS, ("grpc.default_authority", authority)] if authority else _OPTIONS


def client_metadata(client: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata that names the client of a call. See reward.proto.

    Raises:
        ValueError: the name cannot be sent in an HTTP header.
    """
    if not (client.isascii() and client.isprintable()):
        raise ValueError(f"client must be printable ASCII, not {client!r}")
    return ((CLIENT_KEY, client),) if client else ()
