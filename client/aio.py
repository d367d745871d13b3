"""The asyncio client. It shares messages.py, flight.py and retry.py with the blocking one."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

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
from kwise.errors import InvalidRequest, KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import ComparedGroup, ModelInfo, Priority, RankedGroup, ScoredGroup

T = TypeVar("T")


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
            await self._probe(timeout_s)
        self._reached = True

    async def _probe(self, waited_s: float) -> None:
        try:
            await self._stub.GetModel(
                pb.GetModelRequest(), timeout=messages.PROBE_S, wait_for_ready=False
            )
        except grpc.RpcError as error:
            raise messages.no_server(self._target, waited_s, error) from None

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
        groups: Iterable[GroupLike] | AsyncIterable[GroupLike],
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ScoredGroup | KwiseError, None]:
        """Yield one result per group, in order, as `RewardClient.score_many`.

        `groups` is an iterable or an asynchronous iterable. The event loop reads a plain iterable,
        so it must not block.
        """
        source: _Source | None = None
        stream_groups: Iterator[pb.Group | InvalidRequest] = iter(())
        if isinstance(groups, AsyncIterable):
            source = _Source(messages.to_async_stream_groups(self._model, groups, priority))
        else:
            stream_groups = messages.to_stream_groups(self._model, groups, priority)
        # Waits for the first connection; the flight keeps its own time.
        await self._time_left(timeout_s)
        flight = Flight(
            stream_groups, self._timeout_s if timeout_s is None else timeout_s, target=self._target
        )
        try:
            while True:
                try:
                    async with aclosing(self._stream(flight, source)) as results:
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
        finally:
            if source is not None:
                await source.close()

    async def _stream(
        self, flight: Flight, source: "_Source | None"
    ) -> AsyncGenerator[ScoredGroup | KwiseError, None]:
        """Send the groups of the flight on one stream, and yield results until all are answered.

        Args:
            source: the groups, if they come from an asynchronous iterable; None if the flight has
                them.

        Raises:
            grpc.RpcError: the stream broke.
        """
        to_send: asyncio.Queue[pb.ScoreStreamRequest | None] = asyncio.Queue()

        async def sent() -> AsyncIterator[pb.ScoreStreamRequest]:
            while (request := await to_send.get()) is not None:
                yield request

        call = self._stub.ScoreStream(sent(), metadata=self._metadata)
        reading: asyncio.Task[Any] | None = None
        try:
            for request in flight.start():
                to_send.put_nowait(request)
            while True:
                for request in flight.send() if source is None else source.take(flight):
                    to_send.put_nowait(request)
                if (result := flight.pop()) is not None:
                    yield result
                    flight.resume()
                    continue
                waiting: set[asyncio.Task[Any]] = set()
                if source is not None and flight.room:
                    waiting.add(source.next())
                if not flight.is_over:
                    reading = reading or _task(call.read())
                    waiting.add(reading)
                if not waiting:
                    return
                # While only the source is awaited, no timeout applies, because that is the caller's
                # own time.
                left_s = None if flight.is_over else max(flight.remaining_s, 0)
                done, _ = await asyncio.wait(
                    waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise flight.out_of_time()
                if reading not in done:
                    continue
                reply, reading = reading.result(), None
                if not isinstance(reply, pb.ScoreStreamResponse):  # grpc.aio.EOF
                    return  # the server closed the stream; unanswered groups go on the next one
                flight.accept(reply)
        finally:
            if reading is not None:
                reading.cancel()
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


def _task(awaitable: Awaitable[T]) -> asyncio.Task[T]:
    """Run an awaitable as a task. asyncio does not log its exception if nobody awaits the task."""

    async def run() -> T:
        return await awaitable

    task = asyncio.create_task(run())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class _Source:
    """The groups of an asynchronous iterator, drawn one at a time while replies are awaited."""

    def __init__(self, groups: AsyncIterator[pb.Group | InvalidRequest]) -> None:
        self._groups = groups
        self._drawing: asyncio.Task[pb.Group | InvalidRequest] | None = None

    def next(self) -> "asyncio.Task[pb.Group | InvalidRequest]":
        """Return the task that draws the next group. It outlives a stream that breaks."""
        if self._drawing is None:
            self._drawing = _task(anext(self._groups))
        return self._drawing

    def take(self, flight: Flight) -> list[pb.ScoreStreamRequest]:
        """Give the flight the group that was drawn, if there is one, and return its message."""
        if self._drawing is None or not self._drawing.done() or not flight.room:
            return []
        drawn, self._drawing = self._drawing, None
        try:
            return flight.add(drawn.result())
        except StopAsyncIteration:
            flight.end()
            return []

    async def close(self) -> None:
        """Cancel the task, so that nothing more is drawn from the iterator."""
        if self._drawing is not None:
            self._drawing.cancel()
            await asyncio.wait([self._drawing])
