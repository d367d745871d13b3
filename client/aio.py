"""The asyncio client. It shares messages.py, flight.py and retry.py with the blocking one."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from time import monotonic
from types import TracebackType
from typing import Any

import grpc

from kwise.client import messages
from kwise.client.channel import (
    CHANNEL_OPTIONS,
    DEFAULT_CONNECT_TIMEOUT_S,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    check_target,
    check_timeout,
    client_metadata,
)
from kwise.client.flight import Flight, is_interrupted
from kwise.client.messages import GroupLike, PriorityLike, PromptLike, ResponsesLike
from kwise.client.retry import Attempts
from kwise.errors import KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import ComparedGroup, ModelInfo, Priority, RankedGroup, ScoredGroup


class AsyncRewardClient:
    """`RewardClient` with `await`. That class documents the arguments, the methods and the errors.

    Create it in a coroutine: gRPC binds it to the running event loop.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        model: str = "",
        client: str = "",
    ) -> None:
        self._target = check_target("target", target)
        self._timeout_s = check_timeout("timeout_s", timeout_s)
        self._connect_timeout_s = check_timeout("connect_timeout_s", connect_timeout_s)
        self._reached = self._closed = False
        self._model = model
        self._metadata = client_metadata(client)
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub = reward_pb2_grpc.RewardServiceStub(self._channel)

    async def __aenter__(self) -> "AsyncRewardClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def wait_until_ready(self, timeout_s: float = 5.0) -> None:
        check_timeout("timeout_s", timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError:
            raise messages.no_server(self._target, timeout_s) from None
        self._reached = True

    async def score(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> ScoredGroup:
        group = messages.to_group(self._model, prompt, responses, priority)
        request = pb.ScoreRequest(group=group)
        response = await self._call(self._stub.Score, request, timeout_s)
        return messages.from_scored_group(response.scored)

    async def rank(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> RankedGroup:
        group = messages.to_group(self._model, prompt, responses, priority)
        request = pb.RankRequest(group=group)
        return messages.from_rank_response(await self._call(self._stub.Rank, request, timeout_s))

    async def compare(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        pairs: Sequence[tuple[int, int]] | None = None,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> ComparedGroup:
        group = messages.to_group(self._model, prompt, responses, priority)
        request = pb.CompareRequest(group=group, pairs=messages.to_pairs(pairs))
        response = await self._call(self._stub.Compare, request, timeout_s)
        return messages.from_compare_response(response)

    async def get_model(self, *, timeout_s: float | None = None) -> ModelInfo:
        request = pb.GetModelRequest(model=self._model)
        response = await self._call(self._stub.GetModel, request, timeout_s)
        return messages.from_model_response(response)

    async def score_many(
        self,
        groups: Iterable[GroupLike],
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> AsyncIterator[ScoredGroup | KwiseError]:
        """Yield results as `RewardClient.score_many` does.

        `groups` is drawn from on the event loop, so it must not block.
        """
        stream_groups = messages.to_stream_groups(self._model, groups, priority)
        await self._time_left(
            timeout_s
        )  # waits for the first connection; the flight keeps its own time
        flight = Flight(
            stream_groups, self._timeout_s if timeout_s is None else timeout_s, target=self._target
        )
        while True:
            try:
                async with aclosing(self._stream(flight)) as results:
                    async for result in results:
                        yield result
            except grpc.RpcError as error:
                failure = messages.from_rpc_error(error, self._target)
                if self._closed or not is_interrupted(failure):
                    raise failure from error
                flight.refused(failure)
            if flight.done:
                return
            await asyncio.sleep(flight.pause_s())

    async def _stream(self, flight: Flight) -> AsyncGenerator[ScoredGroup | KwiseError, None]:
        """Carry the flight on one stream, until that has answered all. Yield results.

        Raises:
            grpc.RpcError: the stream broke.
        """
        to_send: asyncio.Queue[pb.ScoreStreamRequest | None] = asyncio.Queue()

        async def sent() -> AsyncIterator[pb.ScoreStreamRequest]:
            while (request := await to_send.get()) is not None:
                yield request

        call = self._stub.ScoreStream(sent(), metadata=self._metadata)
        try:
            for request in flight.start():
                to_send.put_nowait(request)
            while True:
                for request in flight.send():
                    to_send.put_nowait(request)
                if (result := flight.pop()) is not None:
                    yield result
                    flight.resume()
                    continue
                if flight.is_over:
                    return
                try:
                    async with asyncio.timeout(max(flight.remaining_s, 0)):
                        reply = await call.read()
                except TimeoutError:
                    raise flight.out_of_time() from None
                if not isinstance(reply, pb.ScoreStreamResponse):  # grpc.aio.EOF
                    return  # the server closed the stream; unanswered groups go on the next one
                flight.accept(reply)
        finally:
            to_send.put_nowait(None)  # ends gRPC's task that reads the queue
            call.cancel()

    async def _time_left(self, timeout_s: float | None) -> float:
        left_s = self._timeout_s if timeout_s is None else check_timeout("timeout_s", timeout_s)
        if not self._reached:
            started_s = monotonic()
            await self.wait_until_ready(min(self._connect_timeout_s, left_s))
            left_s -= monotonic() - started_s
        return left_s

    async def _call(self, method: Callable[..., Any], request: Any, timeout_s: float | None) -> Any:
        attempts = Attempts(await self._time_left(timeout_s))
        while True:
            try:
                return await method(request, timeout=attempts.left_s, metadata=self._metadata)
            except grpc.RpcError as error:
                failure = messages.from_rpc_error(error, self._target)
                if self._closed:
                    raise failure from error
                await asyncio.sleep(attempts.pause_s(failure))
