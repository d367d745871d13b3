"""Text Embeddings Inference's POST /predict and /rerank.

A pair is a prompt and a response in plain text, and so are query and texts. A single text is a
whole conversation with the chat template applied. Scores are sigmoids unless `raw_scores` is true.
`truncate` is accepted and changes nothing: kwise refuses a text that is too long instead of cutting
it (read in TEI 1.9.3: router/src/http/types.rs and server.rs).
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from kwise.engine.server.call import Call
from kwise.engine.server.http.bodies.fields import STATUSES, reply
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.http.errors import ErrorForm, Problem
from kwise.engine.server.samples.sample import Sample, of_candidates, of_pair, of_templated
from kwise.engine.server.samples.scores import LABEL, best_first, score_of
from kwise.engine.server.samples.scoring import ScoredSamples, check_size, score_samples
from kwise.errors import InvalidRequest

_Direction = Literal["left", "Left", "right", "Right"]


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A text, a pair of texts, or a list of lists of one or two texts.

    `truncate` and `truncation_direction` change nothing, because kwise does not cut a text.
    """

    inputs: str | list[str | list[str]]
    truncate: bool | None = None
    truncation_direction: _Direction = "Right"
    raw_scores: bool = False


class RerankTextsRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A query and texts. `truncate` and `truncation_direction` as in `PredictRequest`."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: _Direction = "Right"
    raw_scores: bool = False
    return_text: bool = False


class Prediction(msgspec.Struct, kw_only=True):
    """The score of the only label."""

    score: float
    label: str = LABEL


class Rank(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The score of one text. `index` is its place in the request."""

    index: int
    score: float
    text: str | None = None


class TeiError(msgspec.Struct, kw_only=True):
    """An error in TEI's form."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


_ERROR_TYPES: dict[HTTPStatus, Any] = {
    HTTPStatus.TOO_MANY_REQUESTS: "Overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE: "Unhealthy",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Backend",
    HTTPStatus.GATEWAY_TIMEOUT: "Backend",
}
TEI_ERRORS = ErrorForm(
    body=TeiError,
    make=lambda problem: TeiError(error=problem.message, error_type=_error_type(problem)),
    http_statuses={
        HTTPStatus.BAD_REQUEST: HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.INTERNAL_SERVER_ERROR: HTTPStatus.FAILED_DEPENDENCY,
    },
)


def _error_type(problem: Problem) -> Any:
    return _ERROR_TYPES.get(problem.http_status, "Validation")


def _empty(field: str) -> Reply:
    """Return TEI's reply to a body with nothing to score."""
    error = TeiError(error=f"`{field}` cannot be empty", error_type="Empty")
    return Reply(body=error, http_status=HTTPStatus.BAD_REQUEST)


async def predict(call: Call, body: PredictRequest) -> Reply:
    """Score a text, a pair of texts, or a list of them."""
    if not body.inputs:
        return _empty("inputs")
    if is_batch := isinstance(body.inputs, list) and isinstance(body.inputs[0], list):
        check_size(call, "inputs", len(body.inputs))
        items = [(item, f"inputs[{index}]") for index, item in enumerate(body.inputs)]
    else:
        single: Any = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        items = [(single, "inputs")]
    samples: list[Sample] = []
    for item, field in items:
        if not any(texts := _texts(item, field)):
            return _empty(field)
        samples.append(_sample(texts, field))
    scored = await score_samples(call, samples)
    predictions = [[Prediction(score=score_of(r, not body.raw_scores))] for r in scored.rewards]
    return _with_tokens(predictions if is_batch else predictions[0], scored)


def _texts(item: Any, field: str) -> list[str]:
    """Return the one or two texts of an input.

    Raises:
        InvalidRequest: there are none or too many, or the input mixes texts and lists.
    """
    if isinstance(item, str) or not all(isinstance(text, str) for text in item):
        raise InvalidRequest(field, "a list of inputs has lists of one or two texts only")
    if len(item) not in (1, 2):
        raise InvalidRequest(field, f"it has {len(item)} texts; give one, or a pair")
    return list(item)


def _sample(texts: Sequence[str], field: str) -> Sample:
    if len(texts) == 1:
        return of_templated(texts, [field])[0]
    return of_pair(texts[0], texts[1], f"{field}[0]", f"{field}[1]")


async def rerank(call: Call, body: RerankTextsRequest) -> Reply:
    """Score texts and sort them."""
    if not body.texts:
        return _empty("texts")
    check_size(call, "texts", len(body.texts))
    samples = of_candidates(body.query, body.texts, ("query", "texts"))
    scored = await score_samples(call, samples)
    ranks = [
        Rank(index=index, score=score, text=body.texts[index] if body.return_text else None)
        for index, score in best_first(scored, not body.raw_scores)
    ]
    return _with_tokens(ranks, scored)


def _with_tokens(body: Any, scored: ScoredSamples) -> Reply:
    answer = reply(body, scored)
    headers = {**answer.headers, "x-compute-tokens": str(scored.num_tokens)}
    return Reply(body=body, headers=headers)


def _endpoint(path: str, **fields: Any) -> Endpoint:
    return Endpoint(
        method="POST",
        path=path,
        description="Scores are the sigmoid of the reward unless `raw_scores` is true.",
        tag="Text Embeddings Inference",
        error_statuses=STATUSES,
        errors=TEI_ERRORS,
        **fields,
    )


ENDPOINTS = (
    _endpoint(
        "/predict",
        handler=predict,
        summary="Score a templated text, a pair of plain texts, or a list of them",
        request=PredictRequest,
        response=list[Prediction | list[Prediction]],
    ),
    _endpoint(
        "/rerank",
        handler=rerank,
        summary="Score plain texts for a plain query, and sort them",
        request=RerankTextsRequest,
        response=list[Rank],
        marks=("texts",),
    ),
)
