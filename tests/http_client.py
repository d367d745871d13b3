"""HTTP for tests, on real sockets: whole requests, and connections that send what a test wants."""

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

from tests.servers import PATIENCE_S, Server, wait_until


def http_port(server: Server, said: str = "serving") -> int:
    """Return the port of the server's HTTP port, from its log."""
    pattern = re.compile(rf"{said} on https?://\S+:(\d+)")
    wait_until(lambda: pattern.search(server.log.text) is not None)
    found = pattern.search(server.log.text)
    assert found is not None
    return int(found[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReply:
    """A reply; `headers` has their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which must be JSON without NaN."""
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


class HttpConnection:
    """A connection to a server, which sends any bytes and reads one reply after the other."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        """Send a request. `body` is bytes, or what is sent as JSON."""
        self.socket.sendall(request_bytes(method, path, body, **headers))

    def read(self, method: str = "GET") -> HttpReply:
        """Read the next reply."""
        # HTTPResponse reads through a buffer, which would take bytes of the reply after this one.
        unbuffered = _Unbuffered(self.socket)
        response = HTTPResponse(unbuffered, method=method)  # type: ignore[arg-type]
        response.begin()
        body = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return HttpReply(status=response.status, headers=headers, body=body)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> HttpReply:
        """Send a request and read its reply."""
        self.send(method, path, body, **headers)
        return self.read(method)

    def is_closed(self) -> bool:
        """Wait for the server to close the connection. False if it sends something instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


class _Unbuffered:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def makefile(self, mode: str) -> Any:
        return self._connection.makefile(mode, buffering=0)  # type: ignore[call-overload]


@contextmanager
def connected(port: int) -> Iterator[HttpConnection]:
    """Yield a connection, and close it at the end."""
    connection = HttpConnection(port)
    with connection.socket:
        yield connection


def request_bytes(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """Return the bytes of a request; `content_type` in `headers` stands for Content-Type."""
    content = b"" if body is None else body if isinstance(body, bytes) else encoded(body)
    fields = {"host": "localhost"}
    if body is not None:
        fields |= {"content-type": "application/json", "content-length": str(len(content))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join((*head, "", "")).encode() + content


def encoded(body: Any) -> bytes:
    """Return a body as JSON."""
    return json.dumps(body).encode()


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> HttpReply:
    """Send one request on a connection of its own, and return the reply."""
    with connected(port) as connection:
        return connection.ask(method, path, body, **headers)
