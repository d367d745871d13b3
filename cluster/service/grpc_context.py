"""The context of a gRPC call that came through Ray's proxy, as the RPCs of kwise expect it.

Ray's proxy answers the client. A deployment gets a copy of the call's metadata, and sets the status
on the copy.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message


class Aborted(Exception):
    """The RPC has set its status and ends."""


class ProxiedContext:
    """Stands for `grpc.aio.ServicerContext`.

    Args:
        context: Ray's `RayServegRPCContext`.
        requests: the requests of a call that streams them.
    """

    def __init__(self, context: Any, requests: AsyncIterator[Message] | None = None) -> None:
        self._context = context
        self._requests = requests
        self._replies: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=1)

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        metadata: Sequence[tuple[str, str]] = self._context.invocation_metadata()
        return metadata

    def peer(self) -> str:
        return str(self._context.peer())

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[tuple[str, str]] = (),
    ) -> NoReturn:
        """Set the status of the call and end it.

        Raises:
            Aborted: always.
        """
        self._context.set_code(code)
        self._context.set_details(details)
        self._context.set_trailing_metadata(list(trailing_metadata))
        raise Aborted(details)

    async def read(self) -> Any:
        """Return the client's next request, or `grpc.aio.EOF` after the last."""
        assert self._requests is not None, "the call streams its requests"
        return await anext(self._requests, grpc.aio.EOF)

    async def write(self, reply: Message) -> None:
        """Pass a reply to `replies`, once the one before has been taken."""
        await self._replies.put(reply)

    async def replies(self, rpc: "asyncio.Task[None]") -> AsyncIterator[Message]:
        """Yield what the RPC writes until it ends. Raise what it raises."""
        ended = asyncio.create_task(self._end(rpc))
        try:
            while (reply := await self._replies.get()) is not None:
                yield reply
            await rpc
        finally:
            rpc.cancel()
            ended.cancel()
            await asyncio.gather(rpc, ended, return_exceptions=True)

    async def _end(self, rpc: "asyncio.Task[None]") -> None:
        await asyncio.wait([rpc])
        await self._replies.put(None)
