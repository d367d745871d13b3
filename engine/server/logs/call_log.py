"""The lines of the log about calls: each call at level debug, refused and slow ones in summary."""

import logging
import math
from dataclasses import dataclass

from kwise.engine.server.calls.running_call import CallKind, RunningCall
from kwise.engine.server.logs.form import fields_of, shown_client, with_fields
from kwise.engine.server.logs.summaries import Summaries
from kwise.errors import Status

_LOG = logging.getLogger(__name__)
_OTHERS = "other clients"

# A client that leaves, and one that meets a server which shuts down, are part of normal operation.
_NORMAL = frozenset({Status.CANCELLED, Status.UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class _Key:
    """The features that the calls of one summary share."""

    client: str
    status: Status = Status.OK


class CallLog:
    """An observer of calls that writes the log.

    Args:
        slow_s: a call that takes at least this long is slow; 0 for never.
    """

    def __init__(self, slow_s: float) -> None:
        self._slow_s = slow_s or math.inf
        self._is_debug = _LOG.isEnabledFor(logging.DEBUG)
        self._failed: Summaries[_Key, RunningCall] = Summaries(
            _write_failed, lambda new, old: True, _Key(_OTHERS)
        )
        self._slow: Summaries[_Key, RunningCall] = Summaries(
            _write_slow, lambda new, old: new.duration_s > old.duration_s, _Key(_OTHERS)
        )

    def __call__(self, call: RunningCall) -> None:
        """Note a call that has ended. A stream is not slow, because its client decides."""
        if self._is_debug:
            _LOG.debug("%s", _line(call), extra=with_fields(fields_of(call)))
        status = call.status
        if status is not Status.OK and status is not None and not call.is_logged:
            self._failed.add(_Key(call.host_or_name, status), call)
        if call.duration_s >= self._slow_s and call.kind is not CallKind.STREAM:
            call.request_id  # noqa: B018 - made now, because a later line may show it
            self._slow.add(_Key(call.host_or_name), call)

    def close(self) -> None:
        """Write the summaries that are due."""
        self._failed.flush()
        self._slow.flush()


def _line(call: RunningCall) -> str:
    assert call.status is not None
    parts = [call.method, call.status.name, f"{1000 * call.duration_s:.1f} ms"]
    if call.num_responses:
        plural = "" if call.num_responses == 1 else "s"
        parts.append(f"{call.num_responses} response{plural} of {call.model}")
    why = f": {call.problem}" if call.problem else ""
    return f"{' '.join(parts)} (request {call.request_id} of {shown_client(call.client)}){why}"


def _calls(count: int, kind: str = "") -> str:
    return f"{count} {kind}call{'' if count == 1 else 's'}"


def _place(client: str) -> str:
    if client == _OTHERS:
        return client
    # gRPC no longer knows the address of a client that has left.
    return f"client {shown_client(client)}" if client else "an unknown client"


def _write_failed(key: _Key, count: int, call: RunningCall, seconds: float) -> None:
    assert call.status is not None
    level = logging.INFO if call.status in _NORMAL else logging.WARNING
    place = _place(key.client)
    if seconds:
        said = (
            f"{_calls(count)} of {place} failed in {seconds:g} s with {call.status.name}; the last"
        )
    else:
        said = f"a call of {place} failed with {call.status.name}"
    why = f": {call.problem}" if call.problem else ""
    what = f"request {call.request_id}, {call.method}"
    fields = {**fields_of(call), "count": count}
    _LOG.log(level, "%s (%s)%s", said, what, why, extra=with_fields(fields))


def _write_slow(key: _Key, count: int, call: RunningCall, seconds: float) -> None:
    place = _place(key.client)
    if seconds:
        said = f"{_calls(count, 'slow ')} of {place} in {seconds:g} s (--slow-call-s); the slowest"
    else:
        said = f"a slow call of {place} (--slow-call-s)"
    fields = {**fields_of(call), "count": count, "num_responses": call.num_responses}
    took = f"{call.duration_s:.1f} s"
    if (timing := call.timing) is not None:
        stages = {
            "tokenizer": timing.tokenizer_ms,
            "queue": timing.queue_ms,
            "model": timing.model_ms,
        }
        fields |= {f"{name}_ms": round(ms, 3) for name, ms in stages.items()}
        took += f" ({', '.join(f'{name} {ms / 1000:.1f} s' for name, ms in stages.items())})"
    _LOG.warning(
        "%s: request %s, %s, %d responses, took %s",
        said,
        call.request_id,
        call.method,
        call.num_responses,
        took,
        extra=with_fields(fields),
    )
