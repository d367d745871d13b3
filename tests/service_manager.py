"""The side of systemd in tests: it passes sockets to a server, and is told the server's state."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import PATIENCE_S

KWISE = (sys.executable, "-m", "kwise")


# A shell cannot: dash knows no descriptors above 9.
_ACTIVATE = """
import os, sys
descriptor, name, *command = sys.argv[1:]
os.dup2(int(descriptor), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
os.execv(command[0], command)
"""


def activated(*command: str, listening: socket.socket, name: str = "http") -> tuple[str, ...]:
    """Return a command that runs `command` as systemd does, with a socket and its variables.

    The process that starts it must pass the socket's descriptor.
    """
    return (sys.executable, "-c", _ACTIVATE, str(listening.fileno()), name, *command)


class States:
    """The messages of a server to $NOTIFY_SOCKET, in order."""

    def __init__(self, receiver: socket.socket, path: Path) -> None:
        self._receiver = receiver
        self.path = path

    def next(self) -> dict[str, str]:
        """Wait for the next message, and return its variables."""
        lines = self._receiver.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


@contextmanager
def notified() -> Iterator[States]:
    """Yield the messages of processes that have $NOTIFY_SOCKET, which is set meanwhile."""
    # Not tmp_path: the address of a Unix socket has 107 bytes at most.
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        path = Path(directory, "notify")
        receiver.bind(str(path))
        receiver.settimeout(PATIENCE_S)
        os.environ["NOTIFY_SOCKET"] = str(path)
        try:
            yield States(receiver, path)
        finally:
            del os.environ["NOTIFY_SOCKET"]
