"""uvicorn's HTTP protocol, with the limits that it lacks.

uvicorn limits only the time between two requests of a connection. A client that sends its request a
byte at a time, sends endless headers, or does not read its reply, could hold a connection and
memory of the server without limit.

- A request must arrive whole within `receive_s` seconds of its first byte. Otherwise the connection
  gets 408 and is closed.
- Request line and headers have at most 64 KiB. Otherwise the connection gets 431 and is closed.
- A reply must be read within `receive_s` seconds, except for its last 64 KiB, which the connection
  buffers. Otherwise the connection is closed.
- At most `max_connections` connections are open. Further ones are closed at once, without a reply,
  because a TLS handshake may lie before it.
- A new connection on which nothing arrives is closed after `receive_s` seconds.

An offer to upgrade the connection, which Java's HttpClient makes with each first request, is
ignored. The parser would take the body of such a request for the other protocol, and lose it
(https://github.com/Kludex/uvicorn/issues/2722).

A request that is not HTTP gets 400. The bodies of 400, 408 and 431 are JSON in kwise's own form,
because the client's protocol is not known yet. The log names a client that speaks HTTP/2, as a gRPC
client does that has the wrong port, and one that speaks TLS, because such a client cannot read the
reply.
"""

import logging
import re
from asyncio import TimerHandle, Transport
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kwise.engine.server.http.errors import KWISE_ERRORS, Problem
from kwise.engine.server.logs.summaries import Summaries
from kwise.errors import Status

MAX_HEADER_BYTES = 64 << 10

_UPGRADE = re.compile(rb"(?<=\r\n)upgrade(?=[ \t]*:)", re.IGNORECASE)
# The most bytes of that pattern that a piece of the stream may end with, without a whole match.
_UPGRADE_BYTES = len(b"\r\nupgrade")

_LOG = logging.getLogger(__name__)


def _log_refused(limit: int, count: int, _: str, seconds: float) -> None:
    _LOG.warning(
        "%d HTTP connection%s closed at once%s: --max-http-connections allows %d to be open",
        count,
        " was" if count == 1 else "s were",
        f" in {seconds:g} s" if seconds else "",
        limit,
    )


_LOG_CONNECTIONS: Summaries[int, str] = Summaries(_log_refused, lambda new, old: False, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OtherProtocol:
    """A protocol that clients speak to this port by mistake.

    start: the first bytes of a connection.
    message: the text of the reply.
    log: what the log says of the client.
    """

    start: bytes
    message: str
    log: str


_OTHER_PROTOCOLS = (
    _OtherProtocol(
        start=b"PRI * HTTP/2.0",
        message="this is HTTP/2, which gRPC clients speak, and this port speaks HTTP/1.1; the port "
        "for gRPC is that of --port",
        log="HTTP/2 to the HTTP port, as gRPC clients do; gRPC has the port of --port",
    ),
    _OtherProtocol(
        start=b"\x16\x03",  # a TLS record with a handshake
        message="this is TLS, and this port speaks HTTP without TLS; the URL must begin with "
        "http://",
        log="TLS to the HTTP port, which has no TLS; its URL must begin with http://, not https://",
    ),
)
_MAX_START_BYTES = max(len(protocol.start) for protocol in _OTHER_PROTOCOLS)


@lru_cache(maxsize=1024)
def _log_other_protocol(host: str, protocol: _OtherProtocol) -> None:
    """Log once per host that a client speaks another protocol. Such clients try again and again."""
    _LOG.warning("a client at %s speaks %s", host, protocol.log)


class _Receiving(Enum):
    """The part of a request that is being received."""

    NOTHING = 1
    HEAD = 2
    BODY = 3


class LimitedHttpProtocol(HttpToolsProtocol):
    """One HTTP connection."""

    def __init__(
        self, *arguments: Any, receive_s: float, max_connections: int, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._max_connections = max_connections
        self._receive_s = receive_s
        self._receiving = _Receiving.NOTHING
        # Two counts of the present head. Neither alone sees every endless head: headers that are
        # complete, and pieces of the stream that begin and end within the head.
        self._num_parsed_bytes = 0
        self._num_piece_bytes = 0
        self._head_end = b""  # the last bytes of the head that have arrived
        self._piece_start = b""  # the first bytes of the last piece of the stream
        self._receive_timer: TimerHandle | None = None
        self._abort_timer: TimerHandle | None = None
        self._is_refused = False

    # The connection

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            _LOG_CONNECTIONS.add(self._max_connections, "")
            transport.abort()
            return
        self._start_receive_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receive_timer()
        self._stop_abort_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        was_in_head = self._receiving is _Receiving.HEAD
        self._piece_start = data[:_MAX_START_BYTES]
        data = self._without_upgrade(data)
        super().data_received(data)
        if was_in_head and self._receiving is _Receiving.HEAD:
            self._num_piece_bytes += len(data)
            self._check_head()

    def _without_upgrade(self, data: bytes) -> bytes:
        """Return a piece of the stream in which headers called Upgrade have another name."""
        before = self._head_end if self._receiving is _Receiving.HEAD else b""
        joined = before + data
        if first := _UPGRADE.search(joined):
            # The new name has the same length, in case the match is in a body. JSON has no such
            # line.
            joined = _UPGRADE.sub(b"ignored", joined)
            if first.start() < len(before):  # the parser has the beginning of the name already
                joined = before + b"-" + joined[len(before) :]
        self._head_end = joined[-_UPGRADE_BYTES:]
        return joined[len(before) :]

    @property
    def _is_answering(self) -> bool:
        """True while a request waits for its reply, or for the rest of its body."""
        return bool(self.cycle) and not self.cycle.response_complete

    # The request

    def on_message_begin(self) -> None:
        self._receiving = _Receiving.HEAD
        self._num_parsed_bytes = self._num_piece_bytes = 0
        self._start_receive_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._num_parsed_bytes += len(url)
        self._check_head()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_parsed_bytes += len(name) + len(value)
        self._check_head()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._receiving = _Receiving.BODY
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._receiving = _Receiving.NOTHING
        self._stop_receive_timer()
        super().on_message_complete()

    def _check_head(self) -> None:
        num_bytes = max(self._num_parsed_bytes, self._num_piece_bytes)
        if num_bytes > MAX_HEADER_BYTES and not self._is_refused:
            message = f"request line and headers are larger than {MAX_HEADER_BYTES} bytes"
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, Status.INVALID_ARGUMENT, message
            )

    def _start_receive_timer(self) -> None:
        if self._receive_timer is None:
            self._receive_timer = self.loop.call_later(self._receive_s, self._receive_too_slow)

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _receive_too_slow(self) -> None:
        self._receive_timer = None
        if self.flow.read_paused or (self._receiving is _Receiving.HEAD and self._is_answering):
            # The server does not read, or the client has begun the request after the one that is
            # being answered. Neither is the client's fault.
            self._start_receive_timer()
        elif self._receiving is _Receiving.NOTHING or not (
            self._receiving is _Receiving.HEAD or self._is_answering
        ):
            # Nothing has arrived, or the rest of a refused body still arrives.
            self._close()
        else:
            message = f"the request did not arrive within {self._receive_s:g} s (--http-receive-s)"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, Status.DEADLINE_EXCEEDED, message)

    # The reply

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_abort_timer()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._stop_abort_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_abort_timer()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._start_abort_timer()

    def send_400_response(self, msg: str) -> None:
        message = (
            "this is not a valid HTTP/1.1 request; the request line, a header or a length is "
            "malformed"
        )
        for protocol in _OTHER_PROTOCOLS:
            if self._piece_start.startswith(protocol.start):
                message = protocol.message
                _log_other_protocol(self.client[0] if self.client else "", protocol)
        self._refuse(HTTPStatus.BAD_REQUEST, Status.INVALID_ARGUMENT, message)

    def _refuse(self, http_status: HTTPStatus, status: Status, message: str) -> None:
        """Answer with an error unless a reply has begun, and close the connection."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        if not (self._is_answering and self.cycle.response_started):
            problem = Problem(http_status=http_status, status=status, message=message)
            body = msgspec.json.encode(KWISE_ERRORS.make(problem))
            head = (
                f"HTTP/1.1 {http_status.value} {http_status.phrase}\r\n"
                "content-type: application/json\r\n"
                f"content-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self._close()

    def _close(self) -> None:
        """Close the connection once the client has read the reply, or after `receive_s` seconds."""
        self._stop_receive_timer()
        if not self.transport.is_closing():
            self.transport.close()
        self._start_abort_timer()

    def _start_abort_timer(self) -> None:
        if self._abort_timer is None:
            self._abort_timer = self.loop.call_later(self._receive_s, self.transport.abort)

    def _stop_abort_timer(self) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None
