"""The asyncio client. It shares messages.py, flight.py and retry.py with the blocking one."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Iterable,
    Iterator,
    Sequence,
)
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

import grpc

from kwise.client import messages
from kwise.client.channel import (
    DEFAULT_CONNECT_TIMEOUT_S,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    check_timeout,
    client_metadata,
)
from kwise.client.credentials import Credentials
from kwise.client.errors import RewardServiceError
from kwise.client.flight import Flight
from kwise.client.messages import GroupLike, PriorityLike, PromptLike, ResponsesLike
from kwise.client.retry import Attempts
from kwise.client.several.aio_pool import AsyncLink, AsyncPool
from kwise.client.several.models import merge_models
from kwise.client.several.pool import Metadata
from kwise.client.several.servers import ASK_TIMEOUT_S, Servers
from kwise.client.several.targets import TargetLike, check_targets
from kwise.errors import InvalidRequest, KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import ComparedGroup, ModelInfo, Priority, RankedGroup, ScoredGroup

T = TypeVar("T")


class AsyncRewardClient:
    """`RewardClient` with `await`. That class documents the arguments, the methods and the errors.

    Create it in a coroutine: gRPC binds it to the running event loop.
    """

    def __init__(
        self,
        target: TargetLike | Servers = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        model: str = "",
        client: str = "",
        credentials: Credentials | None = None,
    ) -> None:
        servers = target if isinstance(target, Servers) else None
        if servers is None:
            servers = Servers(check_targets("target", target))
        self._timeout_s = check_timeout("timeout_s", timeout_s)
        self._connect_timeout_s = check_timeout("connect_timeout_s", connect_timeout_s)
        self._reached = self._closed = False
        self._model = model
        credentials = credentials or Credentials.from_environment()
        self._metadata = (*client_metadata(client), *credentials.metadata)
        self._pool = AsyncPool(servers, model, self._metadata, credentials)

    async def __aenter__(self) -> "AsyncRewardClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def servers(self) -> Servers:
        """The servers and what this client knows of them; a copy is for another client."""
        return self._pool.servers

    async def close(self) -> None:
        self._closed = True
        await self._pool.close()

    async def wait_until_ready(self, timeout_s: float = 5.0) -> None:
        await self._pool.connect(check_timeout("timeout_s", timeout_s))
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
        response = await self._call("Score", request, timeout_s)
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
        return messages.from_rank_response(await self._call("Rank", request, timeout_s))

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
        response = await self._call("Compare", request, timeout_s)
        return messages.from_compare_response(response)

    async def get_model(self, *, timeout_s: float | None = None) -> ModelInfo:
        if self.servers.alone is not None:
            request = pb.GetModelRequest(model=self._model)
            return messages.from_model_response(await self._call("GetModel", request, timeout_s))
        attempts = Attempts(await self._time_left(timeout_s))
        while True:
            await self._pool.pick(b"", attempts.left_s)  # waits for a server that is up
            answers = await self._models(self.servers.usable, attempts.left_s)
            if models := self.servers.models(answers):
                return merge_models(models)
            for answer in answers.values():
                if isinstance(answer, RewardServiceError) and not attempts.left_s:
                    raise answer

    async def get_models(
        self, *, timeout_s: float | None = None
    ) -> dict[str, ModelInfo | RewardServiceError]:
        left_s = await self._time_left(timeout_s)
        return await self._models(self.servers.addresses, left_s)

    async def _models(
        self, addresses: Sequence[str], timeout_s: float
    ) -> dict[str, ModelInfo | RewardServiceError]:
        request = pb.GetModelRequest(model=self._model)

        async def model(address: str) -> ModelInfo | RewardServiceError:
            try:
                reply = await self._pool.link(address).stub.GetModel(
                    request,
                    timeout=min(timeout_s, ASK_TIMEOUT_S),
                    metadata=self._metadata,
                    wait_for_ready=False,
                )
            except grpc.RpcError as error:
                return messages.from_rpc_error(error, address)
            return messages.from_model_response(reply)

        answers = await asyncio.gather(*map(model, addresses))
        return dict(zip(addresses, answers, strict=True))

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
            stream_groups, self._timeout_s if timeout_s is None else timeout_s, self.servers
        )
        streams: dict[str, _Stream] = {}
        try:
            while True:
                self._pool.tend()
                sends = flight.send() if source is None else source.send(flight)
                for address, requests in sends.items():
                    if address not in streams:
                        streams[address] = _Stream(self._pool.link(address), self._metadata)
                    for request in requests:
                        streams[address].to_send.put_nowait(request)
                if (result := flight.pop()) is not None:
                    yield result
                    flight.resume()
                    continue
                if flight.done:
                    return
                waiting: set[asyncio.Task[Any]] = {stream.next() for stream in streams.values()}
                changed: asyncio.Task[Any] | None = None
                if self.servers.alone is None:
                    changed = _task(self._pool.changed.wait())
                    waiting.add(changed)
                if source is not None and flight.room:
                    waiting.add(source.next())
                done = await _first_of(waiting, flight.wait_s)
                if changed is not None:
                    changed.cancel()
                if not done:
                    flight.check_time()
                for address, stream in list(streams.items()):
                    if stream.next() in done and self._read(flight, stream):
                        streams.pop(address).close()
        finally:
            for stream in streams.values():
                stream.close()
            if source is not None:
                await source.close()

    def _read(self, flight: Flight, stream: "_Stream") -> bool:
        """Give the flight what a stream has read. Return whether the stream is over."""
        try:
            reply = stream.take()
        except grpc.RpcError as error:
            failure = messages.from_rpc_error(error, stream.address)
            if self._closed:
                raise failure from error
            flight.broken(stream.address, failure)
            return True
        if not isinstance(reply, pb.ScoreStreamResponse):  # grpc.aio.EOF
            flight.broken(stream.address, None)
            return True
        return flight.accept(stream.address, reply)

    async def _time_left(self, timeout_s: float | None) -> float:
        left_s = self._timeout_s if timeout_s is None else check_timeout("timeout_s", timeout_s)
        if not self._reached:
            started_s = monotonic()
            await self.wait_until_ready(min(self._connect_timeout_s, left_s))
            left_s -= monotonic() - started_s
        return left_s

    async def _call(self, method: str, request: Any, timeout_s: float | None) -> Any:
        attempts = Attempts(await self._time_left(timeout_s))
        servers = self.servers
        key = b"" if servers.alone is not None else servers.key(request.group.prompt)
        while True:
            link = await self._pool.pick(key, attempts.left_s)
            try:
                reply = await getattr(link.stub, method)(
                    request,
                    timeout=attempts.left_s,
                    metadata=self._metadata,
                    wait_for_ready=link.wait_for_ready,
                )
            except grpc.RpcError as error:
                failure = messages.from_rpc_error(error, link.address)
                if self._closed:
                    raise failure from error
                if not servers.failed(link.address, failure):
                    await asyncio.sleep(attempts.pause_s(failure))
                continue
            if servers.answered(link.address, messages.fingerprint_of(reply)):
                return reply


class _Stream:
    """An open stream, and the task that reads its next reply."""

    def __init__(self, link: AsyncLink, metadata: Metadata) -> None:
        self.address = link.address
        self.to_send: asyncio.Queue[pb.ScoreStreamRequest | None] = asyncio.Queue()
        self._call = link.stub.ScoreStream(
            self._sent(), metadata=metadata, wait_for_ready=link.wait_for_ready
        )
        self._reading: asyncio.Task[Any] | None = None

    async def _sent(self) -> AsyncIterator[pb.ScoreStreamRequest]:
        while (request := await self.to_send.get()) is not None:
            yield request

    def next(self) -> "asyncio.Task[Any]":
        """Return the task that reads the next reply."""
        if self._reading is None:
            self._reading = _task(self._call.read())
        return self._reading

    def take(self) -> Any:
        """Return the reply that was read, or grpc.aio.EOF.

        Raises:
            grpc.RpcError: the stream broke.
        """
        reading, self._reading = self._reading, None
        assert reading is not None
        return reading.result()

    def close(self) -> None:
        """End the stream, and gRPC's task that reads the queue."""
        if self._reading is not None:
            self._reading.cancel()
        self.to_send.put_nowait(None)
        self._call.cancel()


def _task(awaitable: Awaitable[T]) -> asyncio.Task[T]:
    """Run an awaitable as a task. asyncio does not log its exception if nobody awaits the task."""

    async def run() -> T:
        return await awaitable

    task = asyncio.create_task(run())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _first_of(
    tasks: "set[asyncio.Task[Any]]", timeout_s: float | None
) -> "set[asyncio.Task[Any]]":
    """Return the tasks that are done once one of them is; none if the time is over first."""
    if not tasks:
        await asyncio.sleep(timeout_s or 0.0)
        return set()
    done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    return done


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

    def send(self, flight: Flight) -> dict[str, list[pb.ScoreStreamRequest]]:
        """Give the flight the group that was drawn, if there is one. Return what to send."""
        if self._drawing is not None and self._drawing.done() and flight.room:
            drawn, self._drawing = self._drawing, None
            try:
                flight.add(drawn.result())
            except StopAsyncIteration:
                flight.end()
        return flight.assign()

    async def close(self) -> None:
        """Cancel the task, so that nothing more is drawn from the iterator."""
        if self._drawing is not None:
            self._drawing.cancel()
            await asyncio.wait([self._drawing])
