"""One stream of groups over gRPC: read while there is room, answer groups as they finish.

It uses the call's `read` and `write` and is not an async generator. When the client goes away, a
generator is closed at its `yield`, in a task that is not its own, and the groups in flight would be
left to the garbage collector.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from kwise.errors import InvalidRequest, KwiseError, Unavailable
from kwise.protos.kwise.v1 import reward_pb2 as pb

# Groups of one stream that are worked on at once. A client that sends more waits at HTTP/2's flow
# control.
MAX_STREAM_GROUPS = 256

Context = grpc.aio.ServicerContext[Any, Any]


class GroupStream:
    """The requests and replies of one `ScoreStream` call.

    Args:
        context: the gRPC call.
        answer: returns the reply to one request and does not raise.
        draining: set once the server shuts down; no further requests are read then.
    """

    def __init__(
        self,
        context: Context,
        answer: Callable[[pb.ScoreStreamRequest], Awaitable[pb.ScoreStreamResponse]],
        draining: asyncio.Event,
    ) -> None:
        self._context = context
        self._answer = answer
        self._draining = draining
        self._room = asyncio.Semaphore(MAX_STREAM_GROUPS)
        self._writing = asyncio.Lock()
        self._groups: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Return once every request that was read is answered. If cancelled, cancel their work.

        Raises:
            InvalidRequest: the client sent bytes that are not a request.
            Unavailable: the server drains; unanswered requests belong on another stream.
        """
        draining = asyncio.create_task(self._draining.wait())
        try:
            error = await self._read(draining)
            # Replies come before an error too: gRPC accepts no status while a write is in progress,
            # and the client would wait for ever.
            await asyncio.gather(*self._groups)
        finally:
            await _cancel(draining, *self._groups)
        if error:
            raise error

    async def _read(self, draining: "asyncio.Task[bool]") -> KwiseError | None:
        """Start a task for each request. Return None at the stream's end, or why it ends early."""
        num_read = 0
        while not draining.done():
            reading = asyncio.ensure_future(self._context.read())
            try:
                await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    break
                request = reading.result()
            except DecodeError:
                return InvalidRequest(
                    f"requests[{num_read}]",
                    "this is not a kwise.v1.ScoreStreamRequest; the stream ends before it",
                )
            except grpc.aio.BaseError:
                return None  # the client has gone, and gRPC will cancel this call
            finally:
                await _cancel(reading)
            if not isinstance(request, pb.ScoreStreamRequest):  # grpc.aio.EOF
                return None
            num_read += 1
            await self._room.acquire()
            group = asyncio.create_task(self._serve(request))
            self._groups.add(group)
            group.add_done_callback(self._groups.discard)
        return Unavailable.draining()

    async def _serve(self, request: pb.ScoreStreamRequest) -> None:
        response = await self._answer(request)
        async with self._writing:
            with suppress(grpc.aio.BaseError):  # the client has gone
                await self._context.write(response)
        # Only after the write, so that a client that reads slowly delays its own groups alone.
        self._room.release()


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
