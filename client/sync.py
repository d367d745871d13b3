"""The blocking client."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, sleep
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

_T = TypeVar("_T")


class RewardClient:
    """Rewards from the server at `target` ("host:port", or a URI of gRPC's such as "unix:/path"; else it raises `InvalidRequest`).

    `timeout_s` bounds each call, retries and the wait for a server that restarts included; `connect_timeout_s` the wait for
    a server that was never reached yet. `model` names the model that must answer, "" for whichever is served. `client` names
    whose turn the calls take at a busy server, "" that of the connection, which the clients of a process share; say so where
    many come through one proxy, or one job has many connections. What a restart or a full queue cost is sent again. Safe to
    share between threads.
    Every method raises `RewardServiceError` for a failed call and TypeError or ValueError for arguments that are no request.
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
        self._timeout_s = seconds("timeout_s", timeout_s)
        self._connect_timeout_s = seconds("connect_timeout_s", connect_timeout_s)
        self._reached = self._closed = False
        self._model = model
        self._metadata = client_metadata(client)
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub = reward_pb2_grpc.RewardServiceStub(self._channel)

    def __enter__(self) -> "RewardClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._reached = self._closed = (
            True  # reached, so that a later call is refused at once, by gRPC
        )
        self._channel.close()

    def wait_until_ready(self, timeout_s: float = 5.0) -> None:
        """Raises `RewardServiceError` (UNAVAILABLE) if no server is ready at the target within `timeout_s`."""
        seconds("timeout_s", timeout_s)
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            ready.cancel()
            raise messages.no_server(self._target, timeout_s) from None
        self._reached = True

    def score(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> ScoredGroup:
        """One reward per response, in order; a response that could not be scored has its error in its place."""
        request = messages.score_request(self._model, prompt, responses, priority)
        return messages.scored_group(self._call(self._stub.Score, request, timeout_s))

    def rank(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> RankedGroup:
        """The responses' ranks, 1 the best."""
        request = messages.rank_request(self._model, prompt, responses, priority)
        return messages.ranked_group(self._call(self._stub.Rank, request, timeout_s))

    def compare(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        pairs: Sequence[tuple[int, int]] | None = None,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> ComparedGroup:
        """Margin and win probability of each pair of indices; None means all C(K,2)."""
        request = messages.compare_request(self._model, prompt, responses, pairs, priority)
        return messages.compared_group(self._call(self._stub.Compare, request, timeout_s))

    def get_model(self, *, timeout_s: float | None = None) -> ModelInfo:
        return messages.model_info(
            self._call(self._stub.GetModel, pb.GetModelRequest(model=self._model), timeout_s)
        )

    def score_many(
        self,
        groups: Iterable[GroupLike],
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> Iterator[ScoredGroup | KwiseError]:
        """One result per group, in input order; a group that failed, or is none, yields its error.

        Up to 128 groups are drawn ahead of the results handed out. Groups are `Group`s or pairs (prompt, responses);
        the pairs take `priority`. A broken stream is opened again for what is unanswered; `timeout_s` is the longest
        wait without any result, after which the iterator raises `RewardServiceError`.
        """
        requests = messages.group_requests(self._model, groups, priority)
        self._time_left(timeout_s)  # for the first connection; then the flight keeps its own time
        flight = Flight(
            requests, self._timeout_s if timeout_s is None else timeout_s, target=self._target
        )
        while True:
            try:
                yield from self._stream(flight)
            except grpc.RpcError as error:
                failure = messages.call_error(error, self._target)
                if self._closed or not is_break(failure):
                    raise failure from error
                flight.refused(failure)
            if flight.done:
                return
            sleep(flight.pause_s())

    def _stream(self, flight: Flight) -> Iterator[ScoredGroup | KwiseError]:
        """The flight on one stream, until it is done or stranded. Raises grpc.RpcError when the stream breaks."""
        to_send: SimpleQueue[pb.ScoreStreamRequest | None] = SimpleQueue()
        call = self._stub.ScoreStream(iter(to_send.get, None), metadata=self._metadata)
        replies: SimpleQueue[pb.ScoreStreamResponse | grpc.RpcError | None] = SimpleQueue()
        # gRPC's blocking iterator has no time-out of its own, a queue has.
        Thread(target=_read, args=(call, replies), name="kwise-score-many", daemon=True).start()
        try:
            for request in flight.start():
                to_send.put(request)
            while True:
                for request in flight.send():
                    to_send.put(request)
                if (result := flight.pop()) is not None:
                    yield result
                    flight.resume()
                    continue
                if flight.stranded:
                    return
                try:
                    reply = replies.get(timeout=max(flight.remaining_s, 0))
                except Empty:
                    raise flight.out_of_time() from None
                if reply is None:
                    return  # the server closed the stream; what it owed goes on the next
                if isinstance(reply, grpc.RpcError):
                    raise reply
                flight.accept(reply)
        finally:
            to_send.put(None)  # ends gRPC's thread that reads the queue
            call.cancel()

    def _time_left(self, timeout_s: float | None) -> float:
        """Seconds that a call has, after the wait for the first connection. Raises `RewardServiceError` as that does."""
        left_s = self._timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)
        if not self._reached:
            started_s = monotonic()
            self.wait_until_ready(min(self._connect_timeout_s, left_s))
            left_s -= monotonic() - started_s
        return left_s

    def _call(self, method: Callable[..., _T], request: Any, timeout_s: float | None) -> _T:
        attempts = Attempts(self._time_left(timeout_s))
        while True:
            try:
                return method(request, timeout=attempts.left_s, metadata=self._metadata)
            except grpc.RpcError as error:
                failure = messages.call_error(error, self._target)
                if self._closed:
                    raise failure from error
                sleep(attempts.pause_s(failure))


def _read(call: Iterable[pb.ScoreStreamResponse], replies: "SimpleQueue[Any]") -> None:
    """Every reply, then None or the error that the stream ended with."""
    try:
        for reply in call:
            replies.put(reply)
        replies.put(None)
    except grpc.RpcError as error:
        replies.put(error)
