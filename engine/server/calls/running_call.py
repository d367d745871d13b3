"""One call, from its arrival to its end, for metrics, the log and traces.

An adapter of a protocol enters a `RunningCall` for each call, and the service and the adapter note
on it what they learn: the model, the number of responses, the status of an error. When the call
ends, each observer of the service is called with it.

Code that answers the call finds it in the context (`current_call`), as OpenTelemetry does. An
argument would pass through each function of each protocol.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum
from time import monotonic
from types import TracebackType
from typing import Any

from kwise.engine.server.calls.request_id import new_request_id
from kwise.engine.statistics.group_times import STAGES, GroupStages
from kwise.errors import KwiseError, Status
from kwise.types import Group, Timing

_LOG = logging.getLogger(__name__)


class Protocol(Enum):
    """The protocol that a call comes in."""

    GRPC = "grpc"
    HTTP = "http"


class CallKind(Enum):
    """The part of the traffic that a `RunningCall` stands for.

    UNARY: a call with one reply.
    STREAM: a call that streams requests and replies, as a whole.
    STREAMED: one request of such a stream.
    """

    UNARY = "unary"
    STREAM = "stream"
    STREAMED = "streamed"


class RunningCall:
    """One call. Use it as a context manager, in a task of its own.

    Attributes:
        method: "kwise.v1.RewardService/Score" for a gRPC call, "POST /v1/rewards" for HTTP.
        protocol: the protocol that it came in.
        kind: the part of the traffic that it stands for.
        client: the name of the call's token; or else what the call names, or its peer's address.
        model: the name of the model that answers; "" if the call needs none, or names an unknown
            one.
        num_responses: the responses that the caller wants scored.
        started_s: the time of its arrival, on the clock of `time.monotonic`.
        duration_s: the time until its end, when there is a reply or an error to send. 0 before.
        status: the status of its end; None before.
        problem: why the call failed, for the log: a sentence that quotes no text; "" if it did not.
        headers: its headers, a dict, or its metadata, a sequence of pairs.
        http_status: the HTTP status of its reply; 0 for gRPC, and for a client that has left.
        stages: the moments of its groups; None if no observer wants them.
        is_logged: True if the log has a line about its failure.
        timing: the longest time of its groups in each stage; None if no group was scored.
    """

    __slots__ = (
        "_observers",
        "_request_id",
        "_stream",
        "client",
        "duration_s",
        "headers",
        "http_status",
        "is_logged",
        "kind",
        "method",
        "model",
        "num_responses",
        "problem",
        "protocol",
        "stages",
        "started_s",
        "status",
        "timing",
    )

    def __init__(
        self,
        observers: "CallObservers",
        method: str,
        protocol: Protocol,
        kind: CallKind = CallKind.UNARY,
        *,
        client: str = "",
        request_id: str = "",
        headers: Any = (),
        stream: "RunningCall | None" = None,
    ) -> None:
        self._observers = observers
        self.method = method
        self.protocol = protocol
        self.kind = kind
        self.client = client
        self._request_id = request_id
        self._stream = stream
        self.headers = headers
        self.http_status = 0
        self.stages: list[GroupStages] | None = None
        self.model = ""
        self.num_responses = 0
        self.started_s = 0.0
        self.duration_s = 0.0
        self.status: Status | None = None
        self.problem = ""
        self.is_logged = False
        self.timing: Timing | None = None

    @property
    def has_request_id(self) -> bool:
        """True if the caller has given the call an id, or somebody has asked for it."""
        return bool(self._request_id)

    @property
    def request_id(self) -> str:
        """The id of the call. It is made when somebody asks for it, because most calls need none.

        The requests of a stream have that of the stream.
        """
        if self._stream is not None:
            return self._stream.request_id
        if not self._request_id:
            self._request_id = new_request_id()
        return self._request_id

    @property
    def host_or_name(self) -> str:
        """The client; without the port, if it is the address of a gRPC connection."""
        is_address = self.client.startswith(("ipv4:", "ipv6:"))
        return self.client.rpartition(":")[0] if is_address else self.client

    def streamed(self) -> "RunningCall":
        """Return the call that stands for one request of this stream."""
        return RunningCall(
            self._observers,
            self.method,
            self.protocol,
            CallKind.STREAMED,
            client=self.client,
            headers=self.headers,
            stream=self,
        )

    def failed(self, status: Status, problem: str) -> None:
        """Note how the call fails, and why."""
        self.status, self.problem = status, problem

    def note_timing(self, timing: Timing) -> None:
        """Note the time of one of its groups in each stage."""
        old = self.timing
        self.timing = (
            timing
            if old is None
            else Timing(
                tokenizer_ms=max(old.tokenizer_ms, timing.tokenizer_ms),
                queue_ms=max(old.queue_ms, timing.queue_ms),
                model_ms=max(old.model_ms, timing.model_ms),
            )
        )

    def __enter__(self) -> "RunningCall":
        """Begin the call, and make it the current one of this task."""
        self.started_s = monotonic()
        _CURRENT.set(self)
        if self._observers.wants_stages:
            self.stages = []
            STAGES.set(self.stages)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the call, and tell the observers. A status that was noted stays."""
        self.duration_s = monotonic() - self.started_s
        if self.status is None:
            if error is None:
                self.status = Status.OK
            elif isinstance(error, KwiseError):
                self.failed(error.status, error.log_message)
            else:
                is_cancelled = isinstance(error, asyncio.CancelledError)
                self.status = Status.CANCELLED if is_cancelled else Status.INTERNAL
        for observer in self._observers:
            try:
                observer(self)
            except Exception:  # noqa: BLE001 - the call has its reply, whatever happens here
                _LOG.exception("an observer of calls failed")


# What is told of each call when it has ended. It must take about a microsecond: a cached call of
# nine responses takes 300.
CallObserver = Callable[[RunningCall], None]


class CallObservers(list[CallObserver]):
    """The observers of a service's calls.

    Attributes:
        wants_stages: True if one of them reads `RunningCall.stages`.
    """

    wants_stages = False


_CURRENT: ContextVar[RunningCall | None] = ContextVar("kwise_call", default=None)


def current_call() -> RunningCall | None:
    """Return the call that this task answers; None outside of calls that are observed."""
    return _CURRENT.get()


def note_group(model: str, group: Group) -> RunningCall | None:
    """Note on the current call that `model` scores a group for it. Return the call."""
    if (call := _CURRENT.get()) is not None:
        call.model = model
        call.num_responses += len(group.responses)
    return call
