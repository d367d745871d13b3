"""vLLM's POST /score and /v1/score: pairs of plain texts.

The first text of a pair is the user's turn, and the second one is the answer to it. The first field
has one text for all N texts of the second field, or N texts that are paired one by one. Pairs with
the same first text are one group. The names of the fields have changed over time, and all of vLLM
0.33's are accepted (read in vllm/entrypoints/pooling/scoring/protocol.py). Scores are sigmoids
unless `use_activation` is false.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kwise.engine.server.call import Call
from kwise.engine.server.http.bodies.fields import (
    STATUSES_WITH_MODEL,
    Reasons,
    Usage,
    check_not_cut,
    new_id,
    now,
    refuse_set,
    reply,
    usage_of,
)
from kwise.engine.server.http.bodies.openai_errors import OPENAI_ERRORS
from kwise.engine.server.http.bodies.vllm import REFUSED, VllmRequest
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.sample import Sample, of_pair
from kwise.engine.server.samples.scores import score_of
from kwise.engine.server.samples.scoring import check_size, score_samples
from kwise.errors import InvalidRequest

Texts = str | list[str]

_FIELDS = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)
REFUSED_OF_PAIRS: Reasons = {
    **REFUSED,
    "instruction": "kwise applies the model's own chat template, which has no instruction",
    "chat_template_kwargs": "kwise applies the model's own chat template as training did",
}


class PairRequest(VllmRequest, kw_only=True):
    """The fields of all of vLLM's bodies with pairs of texts."""

    max_tokens_per_query: Annotated[int, Meta(ge=0)] | None = 0
    max_tokens_per_doc: Annotated[int, Meta(ge=0)] | None = 0
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ScoreRequest(PairRequest, kw_only=True):
    """Two fields with the texts, under one of four pairs of names.

    vLLM's own examples set `encoding_format`, which changes nothing, because a score is a number.
    """

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    encoding_format: Literal["float"] | None = None


class Score(msgspec.Struct, kw_only=True):
    """The score of one pair."""

    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreReply(msgspec.Struct, kw_only=True):
    """The scores, one per pair."""

    id: str
    created: int
    model: str
    data: list[Score]
    usage: Usage
    object: Literal["list"] = "list"


async def score(call: Call, body: ScoreRequest) -> Reply:
    """Score pairs of plain texts."""
    refuse_set(body, REFUSED_OF_PAIRS)
    samples = _samples(call, body)
    scored = await score_samples(call, samples, model=body.model)
    for limit in ("truncate_prompt_tokens", "max_tokens_per_query", "max_tokens_per_doc"):
        check_not_cut(limit, getattr(body, limit), samples, scored)
    answer = ScoreReply(
        id=new_id("score", body.request_id),
        created=now(),
        model=scored.model,
        data=[
            Score(index=index, score=score_of(reward, body.use_activation))
            for index, reward in enumerate(scored.rewards)
        ],
        usage=usage_of(scored),
    )
    return reply(answer, scored)


def _samples(call: Call, body: ScoreRequest) -> list[Sample]:
    first_field, second_field = _fields(body)
    first, second = getattr(body, first_field), getattr(body, second_field)
    num_pairs = 1 if isinstance(second, str) else len(second)
    for field, texts in ((first_field, first), (second_field, second)):
        if not texts and not isinstance(texts, str):
            raise InvalidRequest(field, "the list is empty; give at least one text")
    num_first = 1 if isinstance(first, str) else len(first)
    if num_first not in (1, num_pairs):
        raise InvalidRequest(
            first_field,
            f"it has {num_first} texts and {second_field} has {num_pairs}; give one, or as many",
        )
    check_size(call, second_field, num_pairs)
    return [
        of_pair(
            first if isinstance(first, str) else first[index % num_first],
            second if isinstance(second, str) else second[index],
            first_field if isinstance(first, str) else f"{first_field}[{index % num_first}]",
            second_field if isinstance(second, str) else f"{second_field}[{index}]",
        )
        for index in range(num_pairs)
    ]


def _fields(body: ScoreRequest) -> tuple[str, str]:
    """Return the names of the two fields that are set.

    Raises:
        InvalidRequest: not exactly one of the pairs of fields is set.
    """
    all_names = dict.fromkeys(name for pair in _FIELDS for name in pair)
    names = {name for name in all_names if getattr(body, name) is not None}
    for pair in _FIELDS:
        if names == set(pair):
            return pair
    choices = "; ".join(" and ".join(pair) for pair in _FIELDS)
    raise InvalidRequest(
        "body", f"it has {' and '.join(sorted(names)) or 'no texts'}; give two fields: {choices}"
    )


ENDPOINTS = tuple(
    Endpoint(
        method="POST",
        path=path,
        handler=score,
        summary="Score pairs of plain texts: a prompt and a response each",
        description="Scores are the sigmoid of the reward unless `use_activation` is false.",
        tag="vLLM",
        request=ScoreRequest,
        response=ScoreReply,
        error_statuses=STATUSES_WITH_MODEL,
        errors=OPENAI_ERRORS,
    )
    for path in ("/score", "/v1/score")
)
