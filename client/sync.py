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

_T = TypeVar("_T")


class RewardClient:
    """A blocking client of one server. It can be shared between threads.

    Requests that fail because the server restarts or its queue is full are sent again until the
    timeout. Every method that calls the server raises `RewardServiceError` if the call fails, and
    TypeError or ValueError if an argument has a wrong type or value.

    Args:
        target: HOST:PORT, or a URI of gRPC such as "unix:/path".
        timeout_s: the longest time of one call, in seconds, with retries and with the wait for a
            server that restarts.
        connect_timeout_s: the longest wait for the first connection, in seconds.
        model: the name of the model that must answer; "" for whichever the server serves.
        client: the name under which a busy server counts the calls, because it shares its time
            evenly among clients; "" for the connection, which all clients of a process share. Set
            it if many clients come through one proxy, or if one job has many connections.

    Raises:
        InvalidRequest: `target` is not a valid address.
        TypeError, ValueError: another argument has a wrong type or value.
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
        """Close the connection. Later calls raise ValueError."""
        # `_reached` is set, so that gRPC refuses a later call at once instead of connecting again.
        self._reached = self._closed = True
        self._channel.close()

    def wait_until_ready(self, timeout_s: float = 5.0) -> None:
        """Wait for the first connection.

        Raises:
            RewardServiceError: no server was ready within `timeout_s` seconds (UNAVAILABLE).
        """
        check_timeout("timeout_s", timeout_s)
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            ready.cancel()
            self._probe(timeout_s)
        self._reached = True

    def _probe(self, waited_s: float) -> None:
        """Raise the error of a server that is not ready, with its cause, unless it is ready now."""
        try:
            self._stub.GetModel(
                pb.GetModelRequest(), timeout=messages.PROBE_S, wait_for_ready=False
            )
        except grpc.RpcError as error:
            raise messages.no_server(self._target, waited_s, error) from None

    def score(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> ScoredGroup:
        """Return one reward per response, in order. A failed response has its error in its place.

        Args:
            prompt: a text (one message of the user), a conversation, or a `TemplatedText` or token
                ids with the chat template applied.
            responses: texts, or sequences of token ids if the prompt is token ids.
            priority: "bulk" waits behind "interactive".
            timeout_s: replaces the client's `timeout_s` for this call.
        """
        group = messages.to_group(self._model, prompt, responses, priority)
        request = pb.ScoreRequest(group=group)
        response = self._call(self._stub.Score, request, timeout_s)
        return messages.from_scored_group(response.scored)

    def rank(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> RankedGroup:
        """Return the ranks of the responses, 1 for the best, and their rewards. See `score`."""
        group = messages.to_group(self._model, prompt, responses, priority)
        request = pb.RankRequest(group=group)
        return messages.from_rank_response(self._call(self._stub.Rank, request, timeout_s))

    def compare(
        self,
        prompt: PromptLike,
        responses: ResponsesLike,
        pairs: Sequence[tuple[int, int]] | None = None,
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> ComparedGroup:
        """Return the margin and win probability of pairs of responses. See `score`.

        Args:
            pairs: pairs of indices into `responses`; None for all C(K,2) pairs.
        """
        group = messages.to_group(self._model, prompt, responses, priority)
        request = pb.CompareRequest(group=group, pairs=messages.to_pairs(pairs))
        response = self._call(self._stub.Compare, request, timeout_s)
        return messages.from_compare_response(response)

    def get_model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Return a description of the model, with the server's limits and counters."""
        request = pb.GetModelRequest(model=self._model)
        response = self._call(self._stub.GetModel, request, timeout_s)
        return messages.from_model_response(response)

    def score_many(
        self,
        groups: Iterable[GroupLike],
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> Iterator[ScoredGroup | KwiseError]:
        """Yield one result per group, in the order of `groups`, over one stream.

        A group that failed, or an item that is not a group, yields its error. Up to 128 groups are
        drawn ahead of the results yielded. A stream that breaks is opened again for the groups that
        have no result.

        Args:
            groups: `Group`s, or pairs (prompt, responses).
            priority: the priority of the pairs; a `Group` has its own.
            timeout_s: the longest wait without any result, in seconds.
        """
        stream_groups = messages.to_stream_groups(self._model, groups, priority)
        self._time_left(timeout_s)  # waits for the first connection; the flight keeps its own time
        flight = Flight(
            stream_groups, self._timeout_s if timeout_s is None else timeout_s, target=self._target
        )
        while True:
            try:
                yield from self._stream(flight)
            except grpc.RpcError as error:
                failure = messages.from_rpc_error(error, self._target)
                if self._closed or not is_interrupted(failure):
                    raise failure from error
                flight.refused(failure)
            if flight.done:
                return
            sleep(flight.pause_s())

    def _stream(self, flight: Flight) -> Iterator[ScoredGroup | KwiseError]:
        """Send the groups of the flight on one stream, and yield results until all are answered.

        Raises:
            grpc.RpcError: the stream broke.
        """
        to_send: SimpleQueue[pb.ScoreStreamRequest | None] = SimpleQueue()
        call = self._stub.ScoreStream(iter(to_send.get, None), metadata=self._metadata)
        replies: SimpleQueue[pb.ScoreStreamResponse | grpc.RpcError | None] = SimpleQueue()
        # A thread and a queue, because gRPC's blocking iterator has no timeout and a queue has one.
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
                if flight.is_over:
                    return
                try:
                    reply = replies.get(timeout=max(flight.remaining_s, 0))
                except Empty:
                    raise flight.out_of_time() from None
                if reply is None:
                    return  # the server closed the stream; unanswered groups go on the next one
                if isinstance(reply, grpc.RpcError):
                    raise reply
                flight.accept(reply)
        finally:
            to_send.put(None)  # ends gRPC's thread that reads the queue
            call.cancel()

    def _time_left(self, timeout_s: float | None) -> float:
        """Wait for the first connection, and return the seconds that are left for the call."""
        left_s = self._timeout_s if timeout_s is None else check_timeout("timeout_s", timeout_s)
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
                failure = messages.from_rpc_error(error, self._target)
                if self._closed:
                    raise failure from error
                sleep(attempts.pause_s(failure))


def _read(call: Iterable[pb.ScoreStreamResponse], replies: "SimpleQueue[Any]") -> None:
    """Put every reply into `replies`, then None, or the error that the stream ended with."""
    try:
        for reply in call:
            replies.put(reply)
        replies.put(None)
    except grpc.RpcError as error:
        replies.put(error)
