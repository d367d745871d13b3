"""SGLang's POST /v1/embeddings, /classify and /v1/score: the reward itself, without activation.

All texts have the chat template applied, because SGLang joins and tokenises them as they are (read
in 0.5.23: srt/entrypoints/openai/protocol.py, srt/managers/tokenizer_manager_score_mixin.py).

/v1/score is the natural form of K responses to one prompt: the query is the prompt and the items
are the responses. A model that reads pairs of texts gets query and item as its pair.

verl's classifying reward loop calls /v1/embeddings. It gives up at a status of 4xx, so a call that
the queue has no room for is held. /v1/classify is left out on purpose, because SGLang answers it
with a softmax over the labels, which is 1.0 for every text of a reward model.
"""

from typing import Any, Literal, cast

import msgspec

from kwise.engine.served_model import ServedModel
from kwise.engine.server.call import Call
from kwise.engine.server.conversation import plain
from kwise.engine.server.http.bodies.fields import (
    STATUSES_WITH_MODEL,
    Reasons,
    Usage,
    refuse_set,
    reply,
    usage_of,
)
from kwise.engine.server.http.bodies.inputs import Input, of_input
from kwise.engine.server.http.bodies.openai_errors import OPENAI_ERRORS
from kwise.engine.server.http.bodies.vllm import num_items, vector
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.sample import Sample, check_num_ids
from kwise.engine.server.samples.scoring import HOLD_S, check_size, score_samples
from kwise.engine.slices import in_slices_of_ids
from kwise.errors import InvalidRequest
from kwise.types import TemplatedText

# The model of a body that names none.
_DEFAULT_MODEL = "default"
_TEXT_ONLY = "the model reads texts and token ids only"
_REFUSED_OF_EMBEDDINGS: Reasons = {
    "dimensions": "a reward has one dimension",
    "lora_path": "the server has no adapters",
    "embed_override_token_id": _TEXT_ONLY,
    "embed_overrides": _TEXT_ONLY,
}
_REFUSED_OF_SCORE: Reasons = {
    "label_token_ids": "the reward comes from the model's head, not from the logits of tokens",
    "apply_softmax": "the softmax over the only label is 1.0 for every item",
    "temperature": "it changes a softmax only",
    "return_token_logprobs": "a reward model has no logits of tokens",
    "return_pooled_hidden_states": "the server returns rewards only",
    "score_extraction_token": "the reward is read at the end of each item",
    "embed_override_token_id": _TEXT_ONLY,
    "query_embed_overrides": _TEXT_ONLY,
    "item_embed_overrides": _TEXT_ONLY,
}


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whole conversations. `user`, `rid` and `priority` change no reward, and are not read."""

    input: Input
    model: str = _DEFAULT_MODEL
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
    rid: Any = None
    priority: int | None = None
    dimensions: int | None = None
    lora_path: Any = None
    embed_override_token_id: int | None = None
    embed_overrides: Any = None


class Embedding(msgspec.Struct, kw_only=True):
    """The reward of one conversation, as a vector of one number."""

    embedding: list[float] | str
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddingsReply(msgspec.Struct, kw_only=True):
    """The rewards, one per conversation."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: Literal["list"] = "list"


class ClassifyTextRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Texts of whole conversations. `rid` changes no reward, and is not read."""

    text: str | list[str]
    model: str = _DEFAULT_MODEL
    rid: Any = None


class MetaInfo(msgspec.Struct, kw_only=True):
    """The tokens of a conversation."""

    prompt_tokens: int


class TextReward(msgspec.Struct, kw_only=True):
    """The reward of one conversation, as a vector of one number."""

    embedding: list[float]
    meta_info: MetaInfo


class ScoringRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A prompt and its responses: texts, or token ids."""

    query: str | list[int]
    items: str | list[str | list[int]]
    item_first: bool = False
    model: str = _DEFAULT_MODEL
    label_token_ids: Any = None
    apply_softmax: bool = False
    temperature: float = 1.0
    return_token_logprobs: bool = False
    return_pooled_hidden_states: bool = False
    score_extraction_token: str | None = None
    embed_override_token_id: int | None = None
    query_embed_overrides: Any = None
    item_embed_overrides: Any = None


class ScoringReply(msgspec.Struct, kw_only=True):
    """The rewards, one row of one number per item."""

    scores: list[list[float]]
    model: str
    usage: Usage
    object: Literal["scoring"] = "scoring"


async def embed(call: Call, body: EmbeddingsRequest) -> Reply:
    """Score conversations, and report each as a vector."""
    refuse_set(body, _REFUSED_OF_EMBEDDINGS)
    check_size(call, "input", num_items(body.input))
    model = call.without_placeholder(body.model, _DEFAULT_MODEL)
    samples = await of_input(call.served(model), body.input)
    scored = await score_samples(call, samples, model=model, hold_s=HOLD_S)
    answer = EmbeddingsReply(
        data=[
            Embedding(embedding=vector(reward.value, body.encoding_format), index=index)
            for index, reward in enumerate(scored.rewards)
        ],
        model=scored.model,
        usage=usage_of(scored),
    )
    return reply(answer, scored)


async def classify(call: Call, body: ClassifyTextRequest) -> Reply:
    """Score conversations. A single text gets a single object, a list gets a list."""
    conversations: Input = body.text if isinstance(body.text, str) else [*body.text]
    check_size(call, "text", num_items(conversations))
    model = call.without_placeholder(body.model, _DEFAULT_MODEL)
    samples = await of_input(call.served(model), conversations, "text")
    scored = await score_samples(call, samples, model=model)
    answers = [
        TextReward(embedding=[reward.value], meta_info=MetaInfo(prompt_tokens=reward.tokens))
        for reward in scored.rewards
    ]
    return reply(answers[0] if isinstance(body.text, str) else answers, scored)


async def score(call: Call, body: ScoringRequest) -> Reply:
    """Score the items of a query."""
    refuse_set(body, _REFUSED_OF_SCORE)
    model = call.without_placeholder(body.model, _DEFAULT_MODEL)
    scored = await score_samples(call, await _items(call, call.served(model), body), model=model)
    answer = ScoringReply(
        scores=[[reward.value] for reward in scored.rewards],
        model=scored.model,
        usage=usage_of(scored),
    )
    return reply(answer, scored)


async def _items(call: Call, model: ServedModel, body: ScoringRequest) -> list[Sample]:
    """Return the items of a query as samples.

    Raises:
        InvalidRequest: there is no item, or the query and an item are of different types.
    """
    items = [body.items] if isinstance(body.items, str) else body.items
    if not items:
        raise InvalidRequest("items", "the list is empty; give at least one")
    check_size(call, "items", len(items))
    is_text = isinstance(body.query, str)
    for index, item in enumerate(items):
        if isinstance(item, str) is not is_text:
            expected = "a text" if is_text else "a list of token ids"
            raise InvalidRequest(f"items[{index}]", f"it must be {expected}, as the query is")
    fields = (
        ["items"] if isinstance(body.items, str) else [f"items[{i}]" for i in range(len(items))]
    )
    if isinstance(body.query, str):
        return _texts(body.query, cast(list[str], items), fields, body.item_first, model)
    rows = cast(list[list[int]], items)
    for row, field in zip(rows, fields, strict=True):
        # The longer one, because which of the two is too long does not matter here.
        longer = field if len(row) > len(body.query) else "query"
        check_num_ids(longer, len(row) + len(body.query), model.max_tokens)
    return await _token_ids(tuple(body.query), rows, fields, body.item_first)


def _texts(
    query: str, items: list[str], fields: list[str], item_first: bool, model: ServedModel
) -> list[Sample]:
    to_prompt = (lambda text: TemplatedText(text=text)) if model.has_chat_template else plain
    shared = to_prompt(query)
    return [
        Sample(
            prompt=to_prompt(item) if item_first else shared,
            response=query if item_first else item,
            prompt_field=field if item_first else "query",
            response_field="query" if item_first else field,
        )
        for item, field in zip(items, fields, strict=True)
    ]


async def _token_ids(
    query: tuple[int, ...], items: list[list[int]], fields: list[str], item_first: bool
) -> list[Sample]:
    converted: list[tuple[int, ...]] = []
    async for part in in_slices_of_ids(items, len):
        converted += map(tuple, part)
    return [
        Sample(
            prompt=item if item_first else query,
            response=query if item_first else item,
            prompt_field=field if item_first else "query",
            response_field="query" if item_first else field,
        )
        for item, field in zip(converted, fields, strict=True)
    ]


def _endpoint(path: str, **fields: Any) -> Endpoint:
    return Endpoint(
        method="POST",
        path=path,
        tag="SGLang",
        error_statuses=STATUSES_WITH_MODEL,
        errors=OPENAI_ERRORS,
        **fields,
    )


ENDPOINTS = (
    _endpoint(
        "/v1/embeddings",
        handler=embed,
        summary="Score whole conversations that have the chat template applied",
        description=(
            "A call that the queue has no room for is held for up to "
            f"{HOLD_S:g} s, because verl ends a run whose calls are refused."
        ),
        request=EmbeddingsRequest,
        response=EmbeddingsReply,
    ),
    _endpoint(
        "/classify",
        handler=classify,
        summary="Score whole conversations that have the chat template applied",
        request=ClassifyTextRequest,
        response=TextReward | list[TextReward],
        marks=("text",),
    ),
    _endpoint(
        "/v1/score",
        handler=score,
        summary="Score K responses (items) to one prompt (query) with the chat template applied",
        request=ScoringRequest,
        response=ScoringReply,
        marks=("query",),
    ),
)
