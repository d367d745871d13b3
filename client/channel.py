"""How a channel to a kwise server is set up, and what both clients agree on beside the messages."""

import re
from json import dumps
from typing import Any

from kwise.errors import InvalidRequest
from kwise.types import CLIENT_KEY

_MAX_MESSAGE_BYTES = 64 << 20

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "kwise.v1.RewardService"}],
            # A restarting server is waited for, until the call's deadline; retry.py sends again what it lost. One that never
            # answered is not there: the clients wait for the first connection themselves, and for less.
            "waitForReady": True,
        }
    ]
}

CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", dumps(_SERVICE_CONFIG)),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    (
        "grpc.keepalive_time_ms",
        60_000,
    ),  # a dead peer is noticed in 80 s; the server permits pings every 30 s
    ("grpc.keepalive_timeout_ms", 20_000),
]
# A year: gRPC turns infinity, and much longer times, into deadlines that have passed.
_LONGEST_WAIT_S = 365 * 86_400
DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_CONNECT_TIMEOUT_S = 30.0

# The schemes of gRPC's own resolvers, which judge what follows (https://github.com/grpc/grpc/blob/master/doc/naming.md).
_URI = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):\S.*")
# A port may be a service's name, as http.
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+):(?P<port>[0-9]+|[A-Za-z][A-Za-z0-9-]*)")


def check_target(name: str, target: Any) -> str:
    """`target`, where it can be an address. gRPC takes nearly anything and waits: "localhost" is port 443 to it.

    Raises:
        TypeError: it is no text.
        InvalidRequest: it is neither HOST:PORT nor a URI of gRPC's; names the argument.
    """
    if not isinstance(target, str):
        raise TypeError(f"{name} must be a str, not {type(target).__name__}")
    if target.isprintable() and _URI.fullmatch(target):
        return target
    address = _HOST_PORT.fullmatch(target)
    if address is None:
        expected = "must be HOST:PORT, with an IPv6 address in [], or a URI of gRPC's (unix:PATH, dns:///HOST:PORT)"
        raise InvalidRequest(name, f"{expected}, not {target[:100]!a}")
    port = address["port"]
    if port.isdecimal() and (len(port) > 5 or not 0 < int(port) < 1 << 16):
        raise InvalidRequest(
            name, f"has the port {port[:20]}; it must be between 1 and {(1 << 16) - 1}"
        )
    return target


def seconds(name: str, value: Any) -> float:
    """A time-out that can be waited for. Raises TypeError or ValueError, naming the argument."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 < value <= _LONGEST_WAIT_S:  # which NaN is not either
        raise ValueError(f"{name} must be above 0 and at most {_LONGEST_WAIT_S} s, not {value}")
    return float(value)


def client_metadata(client: str) -> tuple[tuple[str, str], ...]:
    """What names the client of a call, see reward.proto. Raises ValueError for what no HTTP header can hold."""
    if not (client.isascii() and client.isprintable()):
        raise ValueError(f"client must be printable ASCII, not {client!r}")
    return ((CLIENT_KEY, client),) if client else ()
