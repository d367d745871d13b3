"""systemd: take the listening sockets that it passes on, and tell it the state of the server.

Both protocols are a few environment variables (sd_listen_fds(3) and sd_notify(3)), so no library
is needed. Without systemd nothing happens. Only HTTP takes a socket: gRPC for Python opens its own
ports and has no call to take one over. docs/deploy.md says what to do instead.
"""

import logging
import os
import socket
import time

from kwise.engine.server.config import ServerConfig
from kwise.errors import ConfigError

_LOG = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3
_NAME = "http"


def http_sockets(config: ServerConfig) -> list[socket.socket]:
    """Return the listening sockets that systemd passes for HTTP, if there are any.

    The environment variables are removed, so that no other process takes the sockets too.

    Raises:
        ConfigError: a socket has another name than `http` or does not listen on TCP, or
            --http-port is given as well.
    """
    names = _passed_names()
    if names and config.http_port is not None:
        raise ConfigError(
            f"--http-port is {config.http_port}, and systemd passes a socket for HTTP; leave out "
            "the option, or disable the socket unit"
        )
    return [_listening(_FIRST_DESCRIPTOR + i, name) for i, name in enumerate(names)]


def notify_ready(status: str) -> None:
    """Say that the server answers requests, at the start and after a reload.

    Args:
        status: what `systemctl status` shows.
    """
    _notify("READY=1", f"STATUS={status}")


def notify_reloading() -> None:
    """Say that a reload begins. `notify_ready` ends it, whether it succeeded or not."""
    # The time tells systemd that this is the answer to its own signal (Type=notify-reload).
    _notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def notify_stopping() -> None:
    """Say that the server shuts down."""
    _notify("STOPPING=1", "STATUS=draining")


def _passed_names() -> list[str]:
    """Return the name of each socket that systemd passes to this process."""
    pid, count, names = (
        os.environ.pop(variable, "") for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if pid != str(os.getpid()):
        return []  # they were for a process that started this one
    num_sockets = int(count) if count.isdecimal() else 0
    return names.split(":") if names and num_sockets else ["unknown"] * num_sockets


def _listening(descriptor: int, name: str) -> socket.socket:
    """Return the socket of a descriptor that systemd passes."""
    if name != _NAME:
        raise ConfigError(
            f"systemd passes a socket named {name!r}, and only HTTP takes one: set "
            f"FileDescriptorName={_NAME} in its socket unit; for gRPC give --port, and see "
            "docs/deploy.md"
        )
    passed = socket.socket(fileno=descriptor)
    is_tcp = passed.family in (socket.AF_INET, socket.AF_INET6)
    if not is_tcp or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(
            f"systemd passes a socket named {name!r} that does not listen on TCP: set "
            "ListenStream= to a port, or an address and a port, and Accept=no"
        )
    passed.set_inheritable(False)
    return passed


def _notify(*lines: str) -> None:
    """Send lines to systemd, if it waits for them."""
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # a name in Linux's abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        _LOG.warning("systemd is not told %s: %s", lines[0], error.strerror or error)
