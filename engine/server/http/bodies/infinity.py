"""infinity's POST /classify, for bodies with `raw_scores`; its /rerank is in `rerank.py`.

A body without `raw_scores` cannot be distinguished from vLLM's, and is answered as vLLM's. The
texts have the chat template applied (read in infinity-emb 0.0.78: fastapi_schemas/pymodels.py).
"""

from typing import Literal

import msgspec

from kwise.engine.server.call import Call
from kwise.engine.server.http.bodies.fields import (
    STATUSES_WITH_MODEL,
    Usage,
    new_id,
    now,
    reply,
    usage_of,
)
from kwise.engine.server.http.bodies.inputs import of_input
from kwise.engine.server.http.bodies.openai_errors import OPENAI_ERRORS
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.scores import LABEL, score_of
from kwise.engine.server.samples.scoring import check_size, score_samples

_DEFAULT_MODEL = "default/not-specified"


class ClassifyTexts(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Texts of whole conversations with the chat template applied."""

    input: list[str]
    raw_scores: bool
    model: str = _DEFAULT_MODEL


class LabelScore(msgspec.Struct, kw_only=True):
    """The score of the only label."""

    score: float
    label: str = LABEL


class ClassifyTextsReply(msgspec.Struct, kw_only=True):
    """The scores of the only label, one per text."""

    id: str
    created: int
    model: str
    data: list[list[LabelScore]]
    usage: Usage
    object: Literal["classify"] = "classify"


async def classify(call: Call, body: ClassifyTexts) -> Reply:
    """Score conversations."""
    check_size(call, "input", len(body.input))
    model = call.without_placeholder(body.model, _DEFAULT_MODEL)
    samples = await of_input(call.served(model), [*body.input])
    scored = await score_samples(call, samples, model=model)
    answer = ClassifyTextsReply(
        id=new_id("infinity"),
        created=now(),
        model=scored.model,
        data=[[LabelScore(score=score_of(r, not body.raw_scores))] for r in scored.rewards],
        usage=usage_of(scored),
    )
    return reply(answer, scored)


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/classify",
        handler=classify,
        summary="Score whole conversations that have the chat template applied",
        description="Scores are the sigmoid of the reward unless `raw_scores` is true.",
        tag="infinity",
        request=ClassifyTexts,
        response=ClassifyTextsReply,
        marks=("raw_scores",),
        error_statuses=STATUSES_WITH_MODEL,
        errors=OPENAI_ERRORS,
    ),
)
