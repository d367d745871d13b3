"""The asyncio client: `RewardClient` with `await`. What they share is in messages.py and flight.py."""

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
    client_metadata,
    seconds,
)
from kwise.client.flight import Flight, is_break
from kwise.client.messages import GroupLike, PriorityLike, PromptLike, ResponsesLike
from kwise.client.results import ComparedGroup, ModelInfo, RankedGroup
from kwise.client.retry import Attempts
from kwise.errors import KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import Priority, ScoredGroup


class AsyncRewardClient:
    """As `RewardClient`, whose methods say what each one takes, answers and raises. Make it where a loop runs."""

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
        self._timeout_s = seconds("timeout_s", timeout_s)
        self._connect_timeout_s = seconds("connect_timeout_s", connect_timeout_s)
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
        seconds("timeout_s", timeout_s)
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
        request = messages.score_request(self._model, prompt, responses, priority)
        return messages.scored_group(await self._call(self._stub.Score, request, timeout_s))

    async def rank(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> RankedGroup:
        request = messages.rank_request(self._model, prompt, responses, priority)
        return messages.ranked_group(await self._call(self._stub.Rank, request, timeout_s))

    async def compare(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        pairs: Sequence[tuple[int, int]] | None = None,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> ComparedGroup:
        request = messages.compare_request(self._model, prompt, responses, pairs, priority)
        return messages.compared_group(await self._call(self._stub.Compare, request, timeout_s))

    async def get_model(self, *, timeout_s: float | None = None) -> ModelInfo:
        request = pb.GetModelRequest(model=self._model)
        return messages.model_info(await self._call(self._stub.GetModel, request, timeout_s))

    async def score_many(
        self,
        groups: Iterable[GroupLike],
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> AsyncIterator[ScoredGroup | KwiseError]:
        """As `RewardClient.score_many`. `groups` is drawn from on the event loop, so it must not block."""
        requests = messages.group_requests(self._model, groups, priority)
        await self._time_left(
            timeout_s
        )  # for the first connection; then the flight keeps its own time
        flight = Flight(
            requests, self._timeout_s if timeout_s is None else timeout_s, target=self._target
        )
        while True:
            try:
                async with aclosing(self._stream(flight)) as results:
                    async for result in results:
                        yield result
            except grpc.RpcError as error:
                failure = messages.call_error(error, self._target)
                if self._closed or not is_break(failure):
                    raise failure from error
                flight.refused(failure)
            if flight.done:
                return
            await asyncio.sleep(flight.pause_s())

    async def _stream(self, flight: Flight) -> AsyncGenerator[ScoredGroup | KwiseError, None]:
        """The flight on one stream, until it is done or stranded. Raises grpc.RpcError when the stream breaks."""
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
                if flight.stranded:
                    return
                try:
                    async with asyncio.timeout(max(flight.remaining_s, 0)):
                        reply = await call.read()
                except TimeoutError:
                    raise flight.out_of_time() from None
                if not isinstance(reply, pb.ScoreStreamResponse):  # grpc.aio.EOF
                    return  # the server closed the stream; what it owed goes on the next
                flight.accept(reply)
        finally:
            to_send.put_nowait(None)  # ends gRPC's task that reads the queue
            call.cancel()

    async def _time_left(self, timeout_s: float | None) -> float:
        left_s = self._timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)
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
                failure = messages.call_error(error, self._target)
                if self._closed:
                    raise failure from error
                await asyncio.sleep(attempts.pause_s(failure))
