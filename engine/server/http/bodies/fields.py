"""Fields of other protocols that kwise refuses, and the ways to report a reward."""

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import msgspec

from kwise.engine.server.http.endpoint import Reply
from kwise.engine.server.samples.sample import Sample
from kwise.engine.server.samples.scoring import ScoredSamples
from kwise.errors import InvalidRequest

# The statuses of errors that every handler may cause, and that of a model that is not served.
STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR)
STATUSES_WITH_MODEL = (HTTPStatus.NOT_FOUND, *STATUSES)

Reasons = Mapping[str, str]


def refuse_set(body: msgspec.Struct, reasons: Reasons) -> None:
    """Refuse a body in which a field is set that kwise does not support.

    Args:
        body: the body.
        reasons: for each such field of the struct, the reason why only its default is accepted.

    Raises:
        InvalidRequest: such a field is set. The error names it and the reason.
    """
    defaults = dict(zip(body.__struct_fields__[::-1], body.__struct_defaults__[::-1], strict=False))
    for field, reason in reasons.items():
        value = getattr(body, field)
        if value is not None and value != defaults[field]:
            raise InvalidRequest(field, f"{reason}; leave it out")


def check_not_cut(
    field: str, max_tokens: int | None, samples: Sequence[Sample], scored: ScoredSamples
) -> None:
    """Check that no conversation exceeds a limit at which another server would cut it.

    Args:
        field: the name of the field with the limit.
        max_tokens: the limit. None, 0 and negative numbers stand for the model's own limit, which
            kwise checks in any case.
        samples: the conversations that were scored.
        scored: their rewards.

    Raises:
        InvalidRequest: a conversation exceeds the limit.
    """
    if max_tokens is None or max_tokens <= 0:
        return
    for index, (sample, reward) in enumerate(zip(samples, scored.rewards, strict=True)):
        if reward.tokens > max_tokens:
            error = InvalidRequest(
                sample.response_field,
                f"the conversation has {reward.tokens} tokens, and {field} is {max_tokens}; kwise "
                f"does not cut texts: shorten it or raise {field}",
            )
            error.response = index
            raise error


class Usage(msgspec.Struct, kw_only=True):
    """The tokens of all conversations of a call, those from the cache included."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


def usage_of(scored: ScoredSamples) -> Usage:
    """Return the number of tokens of the scored conversations."""
    return Usage(prompt_tokens=scored.num_tokens, total_tokens=scored.num_tokens)


def new_id(prefix: str, request_id: str | None = None) -> str:
    """Return the id of a reply: that of the request if it has one."""
    return f"{prefix}-{request_id or uuid4().hex}"


def now() -> int:
    """Return the time in whole seconds since 1970, as these protocols report it."""
    return int(time.time())


def reply(body: Any, scored: ScoredSamples) -> Reply:
    """Return a reply with headers for the values that these protocols have no field for.

    `kwise-fingerprint` is the identity of the model. `kwise-dropped-tokens` is the number of
    tokens that were dropped from overlong conversations, if there are any (--overlong).
    """
    headers = {"kwise-fingerprint": scored.fingerprint}
    if dropped := sum(reward.dropped_tokens for reward in scored.rewards):
        headers["kwise-dropped-tokens"] = str(dropped)
    return Reply(body=body, headers=headers)
