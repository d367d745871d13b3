"""uvicorn's HTTP protocol, with the limits that it lacks.

uvicorn limits only the time between two requests of a connection. A client that sends its request a
byte at a time, sends headers without end, or does not read its reply, would keep its connection and
its memory for ever.

- A request must arrive whole within `receive_s` seconds of its first byte, or else the connection
  gets 408 and is closed. So must the first byte of a new connection arrive.
- Request line and headers have at most 64 KiB, or else the connection gets 431 and is closed.
- A client that reads nothing of a reply for `receive_s` seconds loses its connection.

What is not HTTP is answered with 400. These replies are JSON, in kwise's own form: which family of
endpoints the client means is not known.
"""

from asyncio import TimerHandle, Transport
from http import HTTPStatus

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kwise.engine.server.http.errors import KWISE_ERRORS, Problem
from kwise.errors import Status

MAX_HEADER_BYTES = 64 << 10


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. `new_protocol` sets `receive_s`."""

    receive_s: float = 60.0
    _receiving: TimerHandle | None = None
    _writing: TimerHandle | None = None
    _num_header_bytes = 0
    _is_refused = False

    # The connection

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_receiving()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receiving()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._receiving is None and not self._is_answering:
            self._start_receiving()
        super().data_received(data)

    @property
    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    # The request

    def _start_receiving(self) -> None:
        if self._receiving is None:
            self._receiving = self.loop.call_later(self.receive_s, self._receive_too_slow)

    def _stop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _receive_too_slow(self) -> None:
        self._receiving = None
        message = f"the request did not arrive within {self.receive_s:g} s (--http-receive-s)"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, Status.DEADLINE_EXCEEDED, message)

    def on_message_begin(self) -> None:
        self._num_header_bytes = 0
        self._start_receiving()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header_bytes(len(name) + len(value))
        super().on_header(name, value)

    def _count_header_bytes(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > MAX_HEADER_BYTES:
            message = f"request line and headers are larger than {MAX_HEADER_BYTES} bytes"
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, Status.INVALID_ARGUMENT, message
            )
            raise ValueError(message)  # ends the parser

    def on_message_complete(self) -> None:
        self._stop_receiving()
        super().on_message_complete()

    # The reply

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self.receive_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, Status.INVALID_ARGUMENT, "this is not HTTP/1.1")

    def _refuse(self, http_status: HTTPStatus, status: Status, message: str) -> None:
        """Answer with an error unless a reply has begun, and close the connection."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._stop_receiving()
        if not (self._is_answering and self.cycle.response_started):
            problem = Problem(http_status=http_status, status=status, message=message)
            body = msgspec.json.encode(KWISE_ERRORS.make(problem))
            head = (
                f"HTTP/1.1 {http_status} {http_status.phrase}\r\n"
                "content-type: application/json\r\n"
                f"content-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
        # A client that does not read the reply keeps the connection no longer than others.
        self._writing = self._writing or self.loop.call_later(self.receive_s, self.transport.abort)
