"""One stream of groups: reads while there is room, answers as groups finish, and ends when client or server is done.

It reads and writes through the call's context and not as an async generator, which is closed at its `yield` when the client
goes away, in a task that is not its own: the groups in flight would be left to the garbage collector.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from kwise.errors import InvalidRequest, KwiseError, Unavailable
from kwise.protos.kwise.v1 import reward_pb2 as pb

# Groups of one stream that are worked on at once; a client that sends more waits at gRPC's flow control.
MAX_STREAM_GROUPS = 256

Context = grpc.aio.ServicerContext[Any, Any]


class GroupStream:
    """`answer` gives the reply to one request and raises nothing; `draining` is set once the server is about to leave."""

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
        """Until all that was read is answered. Cancelled, it cancels what it alone waits for.

        Raises:
            InvalidRequest: the client has sent what is no request.
            Unavailable: the server drains; what the client has sent beyond the answers must go on another stream.
        """
        draining = asyncio.create_task(self._draining.wait())
        try:
            error = await self._read(draining)
            # Also before an error: gRPC takes no status while a write is on its way, and the client would wait for ever.
            await asyncio.gather(*self._groups)
        finally:
            await _cancel(draining, *self._groups)
        if error:
            raise error

    async def _read(self, draining: "asyncio.Task[bool]") -> KwiseError | None:
        """Start what the client sends. None when it has sent its last, else why the stream must end before."""
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
                    "is no kwise.v1.ScoreStreamRequest; the stream ends before it",
                )
            except grpc.aio.BaseError:
                return None  # the client has gone, and the call's own cancellation is on its way
            finally:
                await _cancel(reading)
            if not isinstance(request, pb.ScoreStreamRequest):  # grpc.aio.EOF
                return None
            num_read += 1
            await self._room.acquire()
            group = asyncio.create_task(self._serve(request))
            self._groups.add(group)
            group.add_done_callback(self._groups.discard)
        return Unavailable.leaving()

    async def _serve(self, request: pb.ScoreStreamRequest) -> None:
        response = await self._answer(request)
        async with self._writing:
            with suppress(grpc.aio.BaseError):  # as above
                await self._context.write(response)
        self._room.release()  # only once it is written: a slow reader holds its own groups back, and nobody else's


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
