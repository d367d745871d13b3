"""The blocking client."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any

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
from kwise.client.several.models import merge_models
from kwise.client.several.pool import Link, Metadata, Pool
from kwise.client.several.servers import ASK_TIMEOUT_S, Servers
from kwise.client.several.targets import TargetLike, check_targets
from kwise.errors import KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import ComparedGroup, ModelInfo, Priority, RankedGroup, ScoredGroup


class RewardClient:
    """A blocking client of one or several servers. It can be shared between threads.

    With several servers, each prompt has its own one, so that its responses meet in one cache. A
    server that is away is left out until it is back (docs/several-servers.md).

    Requests that fail because a server restarts or its queue is full are sent again until the
    timeout. Every method that calls a server raises `RewardServiceError` if the call fails, and
    TypeError or ValueError if an argument has a wrong type or value.

    Args:
        target: HOST:PORT, or a URI of gRPC such as "unix:/path"; several as a sequence, or with
            commas between them. "dns:///NAME:PORT" stands for all addresses of the name. A
            `Servers` that another client left may be given too.
        timeout_s: the longest time of one call, in seconds, with retries and with the wait for a
            server that restarts.
        connect_timeout_s: the longest wait for the first connection, in seconds.
        model: the name of the model that must answer; "" for whichever the server serves.
        client: the name under which a busy server counts the calls, because it shares its time
            evenly among clients; "" for the connection, which all clients of a process share. Set
            it if many clients come through one proxy, or if one job has many connections. A server
            that asks for tokens counts the calls for the token's name instead.
        credentials: the token and the certificates; None for those of the environment variables
            KWISE_TOKEN, KWISE_TLS_CA, KWISE_TLS_CERT and KWISE_TLS_KEY.

    Raises:
        InvalidRequest: an address in `target`, or a token or a certificate, is not valid.
        TypeError, ValueError: another argument has a wrong type or value.
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
        self._pool = Pool(servers, model, self._metadata, credentials)

    def __enter__(self) -> "RewardClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def servers(self) -> Servers:
        """The servers and what this client knows of them; a copy is for another client."""
        return self._pool.servers

    def close(self) -> None:
        """Close the connection. Later calls raise ValueError."""
        # `_reached` is set, so that gRPC refuses a later call at once instead of connecting again.
        self._reached = self._closed = True
        self._pool.close()

    def wait_until_ready(self, timeout_s: float = 5.0) -> None:
        """Wait for the first connection.

        Raises:
            RewardServiceError: no server was ready within `timeout_s` seconds (UNAVAILABLE), or
                several serve different models (FAILED_PRECONDITION).
        """
        self._pool.connect(check_timeout("timeout_s", timeout_s))
        self._reached = True

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
        response = self._call("Score", request, timeout_s)
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
        return messages.from_rank_response(self._call("Rank", request, timeout_s))

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
        response = self._call("Compare", request, timeout_s)
        return messages.from_compare_response(response)

    def get_model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Return a description of the model, with the server's limits and counters.

        Several servers are described as one: the lowest limits, and the sums of the counters.
        """
        if self.servers.alone is not None:
            request = pb.GetModelRequest(model=self._model)
            return messages.from_model_response(self._call("GetModel", request, timeout_s))
        attempts = Attempts(self._time_left(timeout_s))
        while True:
            self._pool.pick(b"", attempts.left_s)  # waits for a server that is up
            answers = self._models(self.servers.usable, attempts.left_s)
            if models := self.servers.models(answers):
                return merge_models(models)
            for answer in answers.values():
                if isinstance(answer, RewardServiceError) and not attempts.left_s:
                    raise answer

    def get_models(
        self, *, timeout_s: float | None = None
    ) -> dict[str, ModelInfo | RewardServiceError]:
        """Return what each server serves, by address, or why it does not answer now."""
        left_s = self._time_left(timeout_s)
        return self._models(self.servers.addresses, left_s)

    def _models(
        self, addresses: Iterable[str], timeout_s: float
    ) -> dict[str, ModelInfo | RewardServiceError]:
        """Ask servers at the same time for their models."""
        request = pb.GetModelRequest(model=self._model)
        options = {"timeout": min(timeout_s, ASK_TIMEOUT_S), "metadata": self._metadata}
        calls = {
            address: self._pool.link(address).stub.GetModel.future(
                request, wait_for_ready=False, **options
            )
            for address in addresses
        }
        answers: dict[str, ModelInfo | RewardServiceError] = {}
        for address, call in calls.items():
            try:
                answers[address] = messages.from_model_response(call.result())
            except grpc.RpcError as error:
                answers[address] = messages.from_rpc_error(error, address)
        return answers

    def score_many(
        self,
        groups: Iterable[GroupLike],
        *,
        priority: PriorityLike = Priority.INTERACTIVE,
        timeout_s: float | None = None,
    ) -> Iterator[ScoredGroup | KwiseError]:
        """Yield one result per group, in the order of `groups`, over one stream for each server.

        A group that failed, or an item that is not a group, yields its error. Up to 128 groups for
        each server are drawn ahead of the results yielded. A stream that breaks is opened again for
        the groups that have no result.

        Args:
            groups: `Group`s, or pairs (prompt, responses).
            priority: the priority of the pairs; a `Group` has its own.
            timeout_s: the longest wait without any result, in seconds.
        """
        stream_groups = messages.to_stream_groups(self._model, groups, priority)
        self._time_left(timeout_s)  # waits for the first connection; the flight keeps its own time
        flight = Flight(
            stream_groups, self._timeout_s if timeout_s is None else timeout_s, self.servers
        )
        events: SimpleQueue[_Event | None] = SimpleQueue()
        streams: dict[str, _Stream] = {}
        try:
            with self._pool.listening(lambda: events.put(None)):
                yield from self._fly(flight, streams, events)
        finally:
            for stream in streams.values():
                stream.close()

    def _fly(
        self,
        flight: Flight,
        streams: "dict[str, _Stream]",
        events: "SimpleQueue[_Event | None]",
    ) -> Iterator[ScoredGroup | KwiseError]:
        """Move the flight's messages until all groups are answered. Yield results.

        Args:
            streams: the open streams, by the server's address. The caller closes those left over.
            events: what the streams' threads read; None if another server is up.
        """
        while True:
            self._pool.tend()
            for address, requests in flight.send().items():
                if address not in streams:
                    streams[address] = _Stream(self._pool.link(address), self._metadata, events)
                for request in requests:
                    streams[address].to_send.put(request)
            if (result := flight.pop()) is not None:
                yield result
                flight.resume()
                continue
            if flight.done:
                return
            try:
                event = events.get(timeout=flight.wait_s)
            except Empty:
                flight.check_time()
                continue
            if event is None or streams.get(event.stream.address) is not event.stream:
                continue  # a stream that was closed
            address, reply = event.stream.address, event.reply
            if isinstance(reply, pb.ScoreStreamResponse):
                if flight.accept(address, reply):
                    streams.pop(address).close()
                continue
            streams.pop(address).close()
            failure = None if reply is None else messages.from_rpc_error(reply, address)
            if self._closed and failure is not None:
                raise failure from reply
            flight.broken(address, failure)

    def _time_left(self, timeout_s: float | None) -> float:
        """Wait for the first connection, and return the seconds that are left for the call."""
        left_s = self._timeout_s if timeout_s is None else check_timeout("timeout_s", timeout_s)
        if not self._reached:
            started_s = monotonic()
            self.wait_until_ready(min(self._connect_timeout_s, left_s))
            left_s -= monotonic() - started_s
        return left_s

    def _call(self, method: str, request: Any, timeout_s: float | None) -> Any:
        """Return the reply of the server that the request's prompt belongs to."""
        attempts = Attempts(self._time_left(timeout_s))
        servers = self.servers
        key = b"" if servers.alone is not None else servers.key(request.group.prompt)
        while True:
            link = self._pool.pick(key, attempts.left_s)
            try:
                reply = self._send(link, method, request, attempts.left_s)
            except grpc.RpcError as error:
                failure = messages.from_rpc_error(error, link.address)
                if self._closed:
                    raise failure from error
                if not servers.failed(link.address, failure):
                    sleep(attempts.pause_s(failure))
                continue
            if servers.answered(link.address, messages.fingerprint_of(reply)):
                return reply

    def _send(self, link: Link, method: str, request: Any, timeout_s: float) -> Any:
        return getattr(link.stub, method)(
            request,
            timeout=timeout_s,
            metadata=self._metadata,
            wait_for_ready=link.wait_for_ready,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """An event of a stream: a reply, or the end of the stream with its error, if any."""

    stream: "_Stream"
    reply: pb.ScoreStreamResponse | grpc.RpcError | None


class _Stream:
    """An open stream, and the thread that reads it.

    A thread and a queue, because gRPC's blocking iterator has no timeout and a queue has one.
    """

    def __init__(
        self, link: Link, metadata: Metadata, events: "SimpleQueue[_Event | None]"
    ) -> None:
        self.address = link.address
        self.to_send: SimpleQueue[pb.ScoreStreamRequest | None] = SimpleQueue()
        self._events = events
        self._call = link.stub.ScoreStream(
            iter(self.to_send.get, None), metadata=metadata, wait_for_ready=link.wait_for_ready
        )
        Thread(target=self._read, name="kwise-score-many", daemon=True).start()

    def _read(self) -> None:
        reply: pb.ScoreStreamResponse | grpc.RpcError | None = None
        try:
            for reply in self._call:
                self._events.put(_Event(stream=self, reply=reply))
            reply = None
        except grpc.RpcError as error:
            reply = error
        self._events.put(_Event(stream=self, reply=reply))

    def close(self) -> None:
        """End the stream, and gRPC's thread that reads the queue."""
        self.to_send.put(None)
        self._call.cancel()
