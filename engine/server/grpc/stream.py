"""Streams of requests over gRPC: read requests while there is room, and answer them when done.

They use the call's `read` and `write` instead of async generators. When the client goes away, a
generator is closed at its `yield`, in a task that is not its own, and the requests in flight would
be left to the garbage collector.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from kwise.engine.server.grpc.calls import Context
from kwise.errors import InvalidRequest, KwiseError, Unavailable

# The number of requests of one stream that are in progress at once. HTTP/2's flow control holds
# back a client that sends more.
MAX_STREAM_GROUPS = 256

_Request = TypeVar("_Request", bound=Message)
_Reply = TypeVar("_Reply", bound=Message)


class RequestReader(Generic[_Request]):
    """Reads the requests of a call until the client has sent all, or an event ends the stream.

    Args:
        context: the gRPC call.
        request_type: the message that the client sends.
        ends: events after which no further request is read, with the error to raise then.
    """

    def __init__(
        self,
        context: Context,
        request_type: type[_Request],
        ends: Mapping[asyncio.Event, Callable[[], KwiseError]],
    ) -> None:
        self._context = context
        self._request_type = request_type
        self._ends = {asyncio.create_task(event.wait()): error for event, error in ends.items()}
        self._num_read = 0

    async def read(self) -> _Request | None:
        """Return the next request; None if the client has sent all, or has gone.

        Raises:
            InvalidRequest: the client sent bytes that are not a request.
            KwiseError: one of the events is set.
        """
        self._raise_if_ended()
        reading = asyncio.ensure_future(self._context.read())
        try:
            await asyncio.wait({reading, *self._ends}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                self._raise_if_ended()
            request = reading.result()
        except DecodeError:
            raise InvalidRequest(
                f"requests[{self._num_read}]",
                f"this is not a {self._request_type.DESCRIPTOR.full_name}; the stream ends before "
                f"it",
            ) from None
        except grpc.aio.BaseError:
            return None  # the client has gone, and gRPC will cancel this call
        finally:
            await _cancel(reading)
        if not isinstance(request, self._request_type):  # grpc.aio.EOF
            return None
        self._num_read += 1
        return request

    async def close(self) -> None:
        """Stop watching the events."""
        await _cancel(*self._ends)

    def _raise_if_ended(self) -> None:
        for waiting, error in self._ends.items():
            if waiting.done():
                raise error()


class RequestStream(Generic[_Request, _Reply]):
    """The requests and replies of one call that streams both.

    Args:
        context: the gRPC call.
        request_type: the message that the client sends.
        answer: returns the reply to one request. If it raises a `KwiseError`, the stream ends with
            that error; use this with `in_order` only.
        draining: set once the server shuts down; no further requests are read then.
        in_order: write the replies in the order of the requests, and not as they finish.
    """

    def __init__(
        self,
        context: Context,
        request_type: type[_Request],
        answer: Callable[[_Request], Awaitable[_Reply]],
        draining: asyncio.Event,
        *,
        in_order: bool,
    ) -> None:
        self._context = context
        self._answer = answer
        self._in_order = in_order
        self._room = asyncio.Semaphore(MAX_STREAM_GROUPS)
        self._writing = asyncio.Lock()
        self._groups: set[asyncio.Task[None]] = set()
        self._last: asyncio.Task[None] | None = None
        self._failure: KwiseError | None = None
        self._failed = asyncio.Event()
        self._reader = RequestReader(
            context,
            request_type,
            {draining: Unavailable.draining, self._failed: self._first_failure},
        )

    async def run(self) -> None:
        """Return once every request that was read is answered. If cancelled, cancel their work.

        Raises:
            InvalidRequest: the client sent bytes that are not a request.
            Unavailable: the server drains; the client has to send unanswered requests again.
            KwiseError: the first request that failed, if `answer` raises; the replies to all
                earlier ones are written.
        """
        failed = asyncio.create_task(self._failed.wait())
        try:
            error = await self._read()
            # Replies come before an error too: gRPC accepts no status while a write is in progress,
            # and the client would wait without end.
            # Exceptions are returned: if this call is cancelled while it waits, nothing retrieves
            # the one that a cancelled group would leave, and asyncio would log it.
            answered: asyncio.Future[Any] = asyncio.gather(*self._groups, return_exceptions=True)
            await asyncio.wait({answered, failed}, return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                for problem in answered.result():
                    if problem is not None:
                        raise problem
        finally:
            await self._reader.close()
            await _cancel(failed, *self._groups)
        if error := self._failure or error:
            raise error

    async def _read(self) -> KwiseError | None:
        """Start a task for each request. Return None at the stream's end, or why it ends early."""
        try:
            while (request := await self._reader.read()) is not None:
                await self._room.acquire()
                group = asyncio.create_task(self._serve(request, self._last))
                self._groups.add(group)
                group.add_done_callback(self._groups.discard)
                self._last = group if self._in_order else None
        except KwiseError as error:
            return error
        return None

    async def _serve(self, request: _Request, previous: "asyncio.Task[None] | None") -> None:
        try:
            response = await self._answer_or_error(request)
            if previous is not None:
                await asyncio.wait({previous})
            if self._failure is not None:
                return
            if isinstance(response, KwiseError):
                self._failure = response
                self._failed.set()
                return
            async with self._writing:
                with suppress(grpc.aio.BaseError):  # the client has gone
                    await self._context.write(response)
        finally:
            # After the write, so that a client that reads slowly delays its own groups only.
            self._room.release()

    async def _answer_or_error(self, request: _Request) -> _Reply | KwiseError:
        try:
            return await self._answer(request)
        except KwiseError as error:
            return error

    def _first_failure(self) -> KwiseError:
        assert self._failure is not None
        return self._failure


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
