"""HTTP/2 for tests: a connection that sends frames which no gRPC client sends."""

import socket
import struct
from collections.abc import Iterable
from types import TracebackType

from tests.servers import PATIENCE_S

_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4  # a setting
_ACK = 1


class Http2Connection:
    """A connection to a gRPC server. A context manager.

    Args:
        port: the server's port.
        window: the bytes of each reply that the server may send.
    """

    def __init__(self, port: int, window: int = 65535) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings)
        )

    def __enter__(self) -> "Http2Connection":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def call(self, path: str, metadata: Iterable[tuple[str, bytes]] = ()) -> None:
        """Begin the first call, with an empty message."""
        headers = [
            (":method", b"POST"),
            (":scheme", b"http"),
            (":path", path.encode()),
            (":authority", b"x"),
            ("te", b"trailers"),
            ("content-type", b"application/grpc"),
            *metadata,
        ]
        block = b"".join(
            b"\x10" + _string(name.encode()) + _string(value) for name, value in headers
        )
        self._socket.sendall(_frame(_HEADERS, _END_HEADERS, 1, block))
        self._socket.sendall(_frame(_DATA, _END_STREAM, 1, bytes(5)))

    def wait_for_headers(self) -> None:
        """Read until the headers of a reply, or the trailers of a refusal, have come."""
        while True:
            head = self._read(9)
            size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            self._read(size)
            if kind == _SETTINGS and not flags & _ACK:
                self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            if kind == _HEADERS:
                return

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            assert part, "the server has closed the connection"
            data += part
        return data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream) + payload


def _string(value: bytes) -> bytes:
    """Return a string of HPACK, without Huffman's code."""
    assert len(value) < 127, "longer strings have a longer length"
    return bytes([len(value)]) + value
