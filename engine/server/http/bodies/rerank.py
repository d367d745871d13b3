"""POST /rerank, /v1/rerank and /v2/rerank, as in vLLM, Jina, Cohere and infinity.

The query is the user's turn, and each document is an answer to it. All are plain texts and form one
group. Scores are sigmoids, as everywhere in this family, unless vLLM's `use_activation` is false or
infinity's `raw_scores` is true. Results are sorted by score; equal scores keep the caller's order.

The bodies differ little, so one struct has the fields of vLLM, Jina and Cohere. A reply has the
documents unless `return_documents` is false, as vLLM's and Jina's replies; Cohere's clients ignore
them. infinity's documents are bare strings, so a body with `raw_scores` gets a reply of its own.
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
from kwise.engine.server.http.bodies.score import REFUSED_OF_PAIRS, PairRequest
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.sample import of_candidates
from kwise.engine.server.samples.scores import best_first
from kwise.engine.server.samples.scoring import check_size, score_samples

_REFUSED: Reasons = {
    **REFUSED_OF_PAIRS,
    "max_chunks_per_doc": "kwise scores a document whole",
    "rank_fields": "give each document as one text",
}
# The model of a body of infinity that names none.
_INFINITY_DEFAULT = "default/not-specified"


class Document(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A document."""

    text: str


class RerankRequest(PairRequest, kw_only=True):
    """A query and documents.

    `max_chunks_per_doc` and `rank_fields` are Cohere's, `raw_scores` is infinity's.
    """

    query: str
    documents: str | list[str | Document]
    top_n: Annotated[int, Meta(ge=0)] | None = None
    return_documents: bool | None = None
    max_chunks_per_doc: int | None = None
    rank_fields: list[str] | None = None


class InfinityRerankRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A query and documents."""

    query: str
    documents: list[str]
    raw_scores: bool = False
    top_n: Annotated[int, Meta(gt=0)] | None = None
    return_documents: bool = False
    model: str = _INFINITY_DEFAULT


class Result(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The score of one document. `index` is its place in the request."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankReply(msgspec.Struct, kw_only=True):
    """The documents, the best one first."""

    id: str
    model: str
    results: list[Result]
    usage: Usage


class InfinityResult(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The score of one document. `index` is its place in the request."""

    relevance_score: float
    index: int
    document: str | None = None


class InfinityRerankReply(msgspec.Struct, kw_only=True):
    """The documents, the best one first."""

    id: str
    model: str
    results: list[InfinityResult]
    usage: Usage
    created: int
    object: Literal["rerank"] = "rerank"


async def rerank(call: Call, body: RerankRequest) -> Reply:
    """Score documents and sort them."""
    refuse_set(body, _REFUSED)
    items = [body.documents] if isinstance(body.documents, str) else body.documents
    documents = [item if isinstance(item, str) else item.text for item in items]
    check_size(call, "documents", len(documents))
    samples = of_candidates(body.query, documents, ("query", "documents"))
    scored = await score_samples(call, samples, model=body.model)
    for limit in ("truncate_prompt_tokens", "max_tokens_per_query", "max_tokens_per_doc"):
        check_not_cut(limit, getattr(body, limit), samples, scored)
    has_documents = body.return_documents is not False
    answer = RerankReply(
        id=new_id("rerank", body.request_id),
        model=scored.model,
        results=[
            Result(
                index=index,
                relevance_score=score,
                document=Document(text=documents[index]) if has_documents else None,
            )
            for index, score in best_first(scored, body.use_activation)[: body.top_n or None]
        ],
        usage=usage_of(scored),
    )
    return reply(answer, scored)


async def rerank_as_infinity(call: Call, body: InfinityRerankRequest) -> Reply:
    """Score documents and sort them, and reply in infinity's form."""
    check_size(call, "documents", len(body.documents))
    samples = of_candidates(body.query, body.documents, ("query", "documents"))
    model = call.without_placeholder(body.model, _INFINITY_DEFAULT)
    scored = await score_samples(call, samples, model=model)
    answer = InfinityRerankReply(
        id=new_id("infinity"),
        created=now(),
        model=scored.model,
        results=[
            InfinityResult(
                index=index,
                relevance_score=score,
                document=body.documents[index] if body.return_documents else None,
            )
            for index, score in best_first(scored, not body.raw_scores)[: body.top_n or None]
        ],
        usage=usage_of(scored),
    )
    return reply(answer, scored)


def _endpoint(path: str, tag: str, **fields: Any) -> Endpoint:
    return Endpoint(
        method="POST",
        path=path,
        summary="Score plain documents for a plain query, and sort them",
        tag=tag,
        error_statuses=STATUSES_WITH_MODEL,
        errors=OPENAI_ERRORS,
        **fields,
    )


ENDPOINTS = (
    *(
        _endpoint(
            path,
            "infinity",
            handler=rerank_as_infinity,
            request=InfinityRerankRequest,
            response=InfinityRerankReply,
            marks=marks,
            description="Scores are the sigmoid of the reward unless `raw_scores` is true.",
        )
        for path, marks in (
            ("/rerank", ("raw_scores",)),
            ("/v1/rerank", ("raw_scores",)),
            ("/infinity/rerank", ()),
            ("/infinity/v1/rerank", ()),
        )
    ),
    *(
        _endpoint(
            path,
            "vLLM, Jina, Cohere",
            handler=rerank,
            request=RerankRequest,
            response=RerankReply,
            description="Scores are the sigmoid of the reward unless `use_activation` is false.",
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
)
