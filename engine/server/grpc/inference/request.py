"""Make a group of responses from the inputs of a request.

The name of an input says which form the prompt has, so a plain text is never read as JSON. See
`PROMPTS`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from kwise.engine.server.base_service import RequestLimits
from kwise.engine.server.conversation import plain, to_conversation
from kwise.engine.server.grpc.inference.parameters import check_input_parameters
from kwise.engine.server.grpc.inference.tensors import (
    MESSAGES,
    PROMPT,
    PROMPT_TOKEN_IDS,
    RESPONSE_LENGTHS,
    RESPONSE_TOKEN_IDS,
    RESPONSES,
    TEMPLATED_TEXT,
    Inputs,
    Int64,
    Tensor,
)
from kwise.engine.slices import TOKEN_IDS_SLICE_ITEMS, in_slices
from kwise.errors import InvalidRequest
from kwise.protos.inference import inference_pb2 as pb
from kwise.types import Conversation, Group, Message, Priority, TemplatedText, TokenIds


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str


_DECODER = msgspec.json.Decoder(list[_Message])


async def to_group(
    request: pb.ModelInferRequest, limits: RequestLimits, *, priority: Priority, client: str
) -> Group:
    """Return the group of a request. It is converted in slices, see `in_slices`.

    Raises:
        InvalidRequest: an input is missing, unknown or malformed, or there are too many responses.
    """
    inputs = Inputs.of(request, check_input_parameters)
    prompts = [name for name in inputs.names if name in PROMPTS]
    if len(prompts) != 1:
        names = " and ".join(prompts) or "none"
        raise InvalidRequest("inputs", f"give exactly one of {', '.join(PROMPTS)}; given: {names}")
    form = PROMPTS[prompts[0]]
    for tensor in form.responses:
        if tensor.name not in inputs.names:
            raise InvalidRequest(f"inputs.{tensor.name}", f"it is missing; {prompts[0]} needs it")
    for name in inputs.names:
        if name != prompts[0] and name not in {tensor.name for tensor in form.responses}:
            raise InvalidRequest(f"inputs.{name}", f"it cannot be combined with {prompts[0]}")
    if (num_responses := inputs.length(form.responses[0])) == 0:
        raise InvalidRequest(
            f"inputs.{form.responses[0].name}", "there are no responses; give at least one"
        )
    limits.check(num_responses)
    return Group(
        prompt=form.read_prompt(inputs),
        responses=await form.read_responses(inputs),
        priority=priority,
        client=client,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """One form of a request.

    Attributes:
        read_prompt: returns the prompt.
        responses: the other inputs that it needs; the first has one element per response.
        read_responses: returns the responses.
    """

    read_prompt: Callable[[Inputs], Conversation | TemplatedText | TokenIds]
    responses: tuple[Tensor, ...] = (RESPONSES,)
    read_responses: Callable[[Inputs], Awaitable[Any]]


def _prompt(inputs: Inputs) -> Conversation:
    return plain(_only_text(inputs, PROMPT))


def _messages(inputs: Inputs) -> Conversation:
    field = f"inputs.{MESSAGES.name}"
    text = _only_text(inputs, MESSAGES)
    try:
        messages = _DECODER.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            field, f"this is not a JSON array of objects with role and content: {str(error)[:200]}"
        ) from None
    return to_conversation((Message(role=m.role, content=m.content) for m in messages), field)


def _templated_text(inputs: Inputs) -> TemplatedText:
    return TemplatedText(text=_only_text(inputs, TEMPLATED_TEXT))


def _prompt_token_ids(inputs: Inputs) -> TokenIds:
    ids = inputs.numbers(PROMPT_TOKEN_IDS)
    if not len(ids):
        raise InvalidRequest(f"inputs.{PROMPT_TOKEN_IDS.name}", "there are none; give at least one")
    return tuple(ids.tolist())


async def _responses(inputs: Inputs) -> tuple[str, ...]:
    texts: list[str] = []
    async for part in in_slices(inputs.texts(RESPONSES), TOKEN_IDS_SLICE_ITEMS):
        texts += [_text(RESPONSES, value, len(texts) + i) for i, value in enumerate(part)]
    return tuple(texts)


async def _response_token_ids(inputs: Inputs) -> tuple[TokenIds, ...]:
    """Split int64[R] into responses of the given lengths."""
    ids, lengths = inputs.numbers(RESPONSE_TOKEN_IDS), inputs.numbers(RESPONSE_LENGTHS)
    ends = _ends(lengths, len(ids))
    responses: list[TokenIds] = []
    async for part in in_slices(zip(ends - lengths, ends, strict=True), TOKEN_IDS_SLICE_ITEMS):
        responses += [tuple(ids[start:end].tolist()) for start, end in part]
    return tuple(responses)


def _ends(lengths: Int64, num_ids: int) -> Int64:
    field = f"inputs.{RESPONSE_LENGTHS.name}"
    # Lengths up to 2**63 - 1 would overflow in a sum.
    for index in np.flatnonzero((lengths < 0) | (lengths > num_ids))[:1].tolist():
        raise InvalidRequest(
            f"{field}[{index}]", f"{lengths[index]}; there are {num_ids} {RESPONSE_TOKEN_IDS.name}"
        )
    ends: Int64 = np.cumsum(lengths, dtype=np.int64)
    if ends[-1] != num_ids:
        raise InvalidRequest(
            field, f"their sum is {ends[-1]}; there are {num_ids} {RESPONSE_TOKEN_IDS.name}"
        )
    return ends


def _only_text(inputs: Inputs, tensor: Tensor) -> str:
    return _text(tensor, inputs.texts(tensor)[0])


def _text(tensor: Tensor, value: bytes, response: int | None = None) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        problem = f"the byte at {error.start} is not UTF-8"
        field = "text" if response is not None else f"inputs.{tensor.name}"
        raise InvalidRequest(field, problem, response=response) from None


PROMPTS = {
    PROMPT.name: _Form(read_prompt=_prompt, read_responses=_responses),
    MESSAGES.name: _Form(read_prompt=_messages, read_responses=_responses),
    TEMPLATED_TEXT.name: _Form(read_prompt=_templated_text, read_responses=_responses),
    PROMPT_TOKEN_IDS.name: _Form(
        read_prompt=_prompt_token_ids,
        responses=(RESPONSE_LENGTHS, RESPONSE_TOKEN_IDS),
        read_responses=_response_token_ids,
    ),
}
