"""Make the spans of a call once it has ended, from the times that were measured anyway.

So a call that is not sampled costs little, and the engine knows nothing of OpenTelemetry. The names
and attributes follow OpenTelemetry's conventions for RPC and HTTP servers. No attribute holds a
text of a request.

    kwise.v1.RewardService/Score      the call, of kind SERVER
    ├── look-up                       hashing, and looking up in the reward cache
    ├── tokenizer                     waiting for a thread, and tokenising
    ├── queue                         waiting for a batch
    ├── batch                         the model's pass over the batch, with other callers' sequences
    └── reply                         storing and assembling the rewards
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context

from kwise.engine.server.calls.running_call import CallKind, Protocol, RunningCall
from kwise.engine.server.logs.form import shown_client
from kwise.engine.statistics.group_times import GroupStages
from kwise.errors import Status

# The other statuses are faults of the caller.
_FAULTS = frozenset(
    {
        Status.UNKNOWN,
        Status.DEADLINE_EXCEEDED,
        Status.UNIMPLEMENTED,
        Status.INTERNAL,
        Status.UNAVAILABLE,
        Status.DATA_LOSS,
    }
)
_CODES = {status: code for code, status in enumerate(Status)}


class CallSpans:
    """An observer of calls that makes spans with `tracer`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, call: RunningCall) -> None:
        """Make the spans of a call that has ended."""
        context = propagate.extract(call.headers, getter=_GETTER)
        # The time of day is read once, so that the spans of a call fit together.
        origin_ns = time.time_ns() - round(1e9 * time.monotonic())
        span = self._tracer.start_span(
            call.method,
            context,
            SpanKind.SERVER,
            attributes=_attributes(call),
            start_time=_ns(origin_ns, call.started_s),
        )
        if span.is_recording():
            status = call.status or Status.UNKNOWN
            if call.protocol is Protocol.GRPC:
                span.set_attribute("rpc.grpc.status_code", _CODES[status])
            if status is not Status.OK:
                span.set_attribute("error.type", status.name)
            if status in _FAULTS:
                span.set_status(StatusCode.ERROR)
            self._add_stages(call.stages or (), set_span_in_context(span, context), origin_ns)
        span.end(_ns(origin_ns, call.started_s + call.duration_s))

    def _add_stages(self, groups: Sequence[GroupStages], parent: Context, origin_ns: int) -> None:
        for group in groups:
            for name, start_s, end_s in _stages(group):
                span = self._tracer.start_span(name, parent, start_time=_ns(origin_ns, start_s))
                span.end(_ns(origin_ns, end_s))


def _attributes(call: RunningCall) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "kwise.client": shown_client(call.client),
        "kwise.model": call.model,
        "kwise.responses": call.num_responses,
    }
    if call.has_request_id:
        attributes["kwise.request_id"] = call.request_id
    if call.kind is not CallKind.UNARY:
        attributes["kwise.kind"] = call.kind.value
    if call.protocol is Protocol.GRPC:
        service, _, method = call.method.partition("/")
        return attributes | {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    method, _, route = call.method.partition(" ")
    attributes |= {"http.request.method": method, "http.route": route}
    if call.http_status:
        attributes["http.response.status_code"] = call.http_status
    return attributes


def _stages(group: GroupStages) -> Iterator[tuple[str, float, float]]:
    """Yield the name, start and end of each stage of a group."""
    yield "look-up", group.started_s, group.looked_up_s
    if group.is_cached:
        return
    timing = group.timing
    tokenised_s = group.looked_up_s + timing.tokenizer_ms / 1000
    if timing.tokenizer_ms:
        yield "tokenizer", group.looked_up_s, tokenised_s
    if timing.queue_ms:
        yield "queue", tokenised_s, tokenised_s + timing.queue_ms / 1000
    if timing.model_ms:
        yield "batch", group.computed_s - timing.model_ms / 1000, group.computed_s
    yield "reply", group.computed_s, group.replied_s


def _ns(origin_ns: int, monotonic_s: float) -> int:
    return origin_ns + round(1e9 * monotonic_s)


class _HeaderGetter(Getter[Any]):
    """Reads the headers of HTTP, a dict of bytes, and the metadata of gRPC, a sequence of pairs."""

    def get(self, carrier: Any, key: str) -> list[str] | None:
        if isinstance(carrier, Mapping):
            value = carrier.get(key.encode())
            return None if value is None else [value.decode("latin-1")]
        values = [str(value) for name, value in carrier if name == key]
        return values or None

    def keys(self, carrier: Any) -> list[str]:
        if isinstance(carrier, Mapping):
            return [name.decode("latin-1") for name in carrier]
        return [name for name, _ in carrier]


_GETTER = _HeaderGetter()
