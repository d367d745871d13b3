"""vLLM's POST /classify and /pooling: whole conversations, as text, token ids or messages.

`input` has the chat template applied; `messages` get it here, and the last message, the
assistant's, is scored. vLLM 0.33 reports the sigmoid of a single label unless `use_activation` is
false, and so does kwise (read in vllm/entrypoints/pooling/: protocol.py of base, classify and
pooling).

`add_special_tokens` is accepted and changes nothing. In vLLM, its default gives a text that has the
template applied a second first token (BOS). kwise corrects the first token in any case.

verl's classifying reward loop sends this body too. It gives up at a status of 4xx, so a call that
the queue has no room for is held.
"""

import base64
import struct
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
from kwise.engine.server.http.bodies.inputs import ChatMessage, Input, of_input, of_messages
from kwise.engine.server.http.bodies.openai_errors import OPENAI_ERRORS
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.sample import Sample
from kwise.engine.server.samples.scores import LABEL, score_of
from kwise.engine.server.samples.scoring import HOLD_S, ScoredSamples, check_size, score_samples
from kwise.types import Reward

# The fields of all of vLLM's bodies of which only the default is accepted, with the reason.
REFUSED: Reasons = {
    "cache_salt": "kwise's caches cannot be divided",
    "padding": "kwise never pads a text to a length",
    "mm_processor_kwargs": "the model reads text only",
}
_REFUSED_OF_MESSAGES: Reasons = {
    "add_generation_prompt": "the reward is that of the last message, which must be complete",
    "continue_final_message": "the reward is that of the last message, which must be complete",
    "chat_template": "kwise applies the model's own chat template",
    "chat_template_kwargs": "kwise applies the model's own chat template as training did",
    "media_io_kwargs": "the model reads text only",
}
_REFUSED_OF_POOLING: Reasons = {
    "dimensions": "a reward has one dimension",
    "embed_dtype": "rewards are float32",
    "endianness": "base64 is little-endian",
}


class VllmRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields of all of vLLM's bodies.

    `user`, `priority` and `truncation_side` change no reward, and are not read.
    """

    model: str | None = None
    user: str | None = None
    request_id: str | None = None
    priority: int = 0
    use_activation: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    padding: Literal["max_length", "do_not_pad"] | None = "do_not_pad"
    cache_salt: str | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class ClassifyInput(VllmRequest, kw_only=True):
    """Texts or token ids of whole conversations with the chat template applied."""

    input: Input
    add_special_tokens: bool = True


class ClassifyMessages(VllmRequest, kw_only=True):
    """One conversation. Its last message is scored."""

    messages: list[ChatMessage]
    add_special_tokens: bool = False
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None


class PoolingInput(ClassifyInput, kw_only=True):
    """As `ClassifyInput`. A reward model knows the task "classify" only."""

    task: Literal["classify"] | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: str = "float32"
    endianness: str = "native"


class PoolingMessages(ClassifyMessages, kw_only=True):
    """As `ClassifyMessages`. A reward model knows the task "classify" only."""

    task: Literal["classify"] | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: str = "float32"
    endianness: str = "native"


class Classification(msgspec.Struct, kw_only=True):
    """The reward of one conversation, as the probability of the only label."""

    index: int
    probs: list[float]
    label: str = LABEL
    num_classes: int = 1


class ClassifyReply(msgspec.Struct, kw_only=True):
    """The rewards, one per conversation."""

    id: str
    created: int
    model: str
    data: list[Classification]
    usage: Usage
    object: Literal["list"] = "list"


class Pooled(msgspec.Struct, kw_only=True):
    """The reward of one conversation, as a vector of one number."""

    index: int
    data: list[float] | str
    object: Literal["pooling"] = "pooling"


class PoolingReply(msgspec.Struct, kw_only=True):
    """The rewards, one per conversation."""

    id: str
    created: int
    model: str
    data: list[Pooled]
    usage: Usage
    object: Literal["list"] = "list"


def vector(number: float, encoding_format: str | None) -> list[float] | str:
    """Return a vector of one number: a list, or the base64 of its little-endian float32."""
    if encoding_format == "base64":
        return base64.b64encode(struct.pack("<f", number)).decode()
    return [number]


async def classify(call: Call, body: ClassifyInput | ClassifyMessages) -> Reply:
    """Score conversations, and report each as a classification."""
    scored = await _score(call, body)
    answer = ClassifyReply(
        id=new_id("classify", body.request_id),
        created=now(),
        model=scored.model,
        data=[
            Classification(index=index, probs=[score_of(reward, body.use_activation)])
            for index, reward in enumerate(scored.rewards)
        ],
        usage=usage_of(scored),
    )
    return reply(answer, scored)


async def pool(call: Call, body: PoolingInput | PoolingMessages) -> Reply:
    """Score conversations, and report each as a vector."""
    refuse_set(body, _REFUSED_OF_POOLING)

    def pooled(index: int, reward: Reward) -> Pooled:
        number = score_of(reward, body.use_activation)
        return Pooled(index=index, data=vector(number, body.encoding_format))

    scored = await _score(call, body)
    answer = PoolingReply(
        id=new_id("pool", body.request_id),
        created=now(),
        model=scored.model,
        data=[pooled(index, reward) for index, reward in enumerate(scored.rewards)],
        usage=usage_of(scored),
    )
    return reply(answer, scored)


async def _score(call: Call, body: ClassifyInput | ClassifyMessages) -> ScoredSamples:
    refuse_set(body, REFUSED)
    samples: list[Sample]
    if isinstance(body, ClassifyMessages):
        refuse_set(body, _REFUSED_OF_MESSAGES)
        samples = [of_messages(body.messages)]
    else:
        check_size(call, "input", num_items(body.input))
        samples = await of_input(call.served(body.model), body.input)
    scored = await score_samples(call, samples, model=body.model, hold_s=HOLD_S)
    check_not_cut("truncate_prompt_tokens", body.truncate_prompt_tokens, samples, scored)
    return scored


def num_items(conversations: Input) -> int:
    """Return the number of conversations in a field. A list of token ids is one."""
    if isinstance(conversations, str) or (conversations and isinstance(conversations[0], int)):
        return 1
    return len(conversations)


def _endpoint(path: str, request: type, mark: str, handler: Any, response: type) -> Endpoint:
    content = (
        "a conversation in messages, of which the last is scored"
        if mark == "messages"
        else "whole conversations that have the chat template applied"
    )
    return Endpoint(
        method="POST",
        path=path,
        handler=handler,
        summary=f"Score {content}",
        description=(
            "Scores are the sigmoid of the reward unless `use_activation` is false. A call that "
            f"the queue has no room for is held for up to {HOLD_S:g} s, because verl ends a run "
            "whose calls are refused."
        ),
        tag="vLLM",
        request=request,
        response=response,
        marks=(mark,),
        error_statuses=STATUSES_WITH_MODEL,
        errors=OPENAI_ERRORS,
    )


ENDPOINTS = (
    _endpoint("/classify", ClassifyInput, "input", classify, ClassifyReply),
    _endpoint("/classify", ClassifyMessages, "messages", classify, ClassifyReply),
    _endpoint("/pooling", PoolingInput, "input", pool, PoolingReply),
    _endpoint("/pooling", PoolingMessages, "messages", pool, PoolingReply),
)
