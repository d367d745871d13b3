"""The bodies of requests to kwise's own endpoints, and their conversion to kwise's types.

They are the JSON form of kwise.v1, as protobuf's `json_format` writes it. Names of fields may be in
camelCase, as `json_format` writes them, or as they are in reward.proto. A request may also be
written in a shorter form:

    {"prompt": "Why?", "responses": ["Because.", "Dunno."]}
    {"prompt": [{"role": "user", "content": "Why?"}], "responses": ["Because."]}
    {"prompt": [1, 2, 3], "responses": [[4, 5], [6]]}
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from kwise.engine.server.conversation import plain, to_conversation
from kwise.engine.server.samples.sample import check_num_ids
from kwise.engine.slices import CHEAP_SLICE_ITEMS, in_slices
from kwise.errors import InvalidRequest
from kwise.options import MAX_UINT32
from kwise.types import (
    Conversation,
    Group,
    Message,
    Priority,
    TemplatedText,
    TokenIds,
)

Uint32: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_UINT32)]

_PRIORITIES: dict[str | int | None, Priority] = {
    None: Priority.INTERACTIVE,
    "PRIORITY_UNSPECIFIED": Priority.INTERACTIVE,
    "PRIORITY_INTERACTIVE": Priority.INTERACTIVE,
    "PRIORITY_BULK": Priority.BULK,
    "interactive": Priority.INTERACTIVE,
    "bulk": Priority.BULK,
    0: Priority.INTERACTIVE,
    1: Priority.INTERACTIVE,
    2: Priority.BULK,
}


class _Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a request. Fields that are not known are refused."""


# A field that may be spelled in two ways is two fields here.


class MessageBody(_Request, kw_only=True):
    """One message of a conversation. `content` is required, and may be empty."""

    role: str = ""
    content: str


class ProtoMessageBody(_Request):
    """kwise.v1.Message. Protobuf leaves out a field that is empty."""

    role: str = ""
    content: str = ""


class ConversationBody(_Request):
    """kwise.v1.Conversation."""

    messages: list[ProtoMessageBody] = []


class TokenIdsBody(_Request):
    """kwise.v1.TokenIds."""

    ids: tuple[Uint32, ...] = ()


class PromptBody(_Request):
    """kwise.v1.Prompt: one of the fields."""

    text: str | None = None
    messages: ConversationBody | list[MessageBody] | None = None
    token_ids: TokenIdsBody | tuple[Uint32, ...] | None = None
    token_ids_camel: TokenIdsBody | tuple[Uint32, ...] | None = msgspec.field(
        default=None, name="tokenIds"
    )
    templated_text: str | None = None
    templated_text_camel: str | None = msgspec.field(default=None, name="templatedText")


class ResponseBody(_Request):
    """kwise.v1.Response: one of the fields."""

    text: str | None = None
    token_ids: TokenIdsBody | tuple[Uint32, ...] | None = None
    token_ids_camel: TokenIdsBody | tuple[Uint32, ...] | None = msgspec.field(
        default=None, name="tokenIds"
    )


class GroupBody(_Request):
    """kwise.v1.Group: K responses to a prompt.

    `prompt` is a text (one message of the user), messages, token ids, or a kwise.v1.Prompt.
    `responses` are texts, token ids, or kwise.v1.Response. `priority` is "interactive" or "bulk".
    """

    model: str | None = None
    prompt: str | list[MessageBody | Uint32] | PromptBody | None = None
    responses: list[str | tuple[Uint32, ...] | ResponseBody] = []
    priority: str | int | None = None


class ScoreRequest(GroupBody):
    """kwise.v1.ScoreRequest (and RankRequest). The fields of `group` may stand here instead."""

    group: GroupBody | None = None

    def group_body(self) -> GroupBody:
        """Return the group, from `group` or from this body's own fields.

        Raises:
            InvalidRequest: a field of the group is set in both places.
        """
        if self.group is None:
            return self
        for name in GroupBody.__struct_fields__:
            if getattr(self, name):
                raise InvalidRequest(name, "it is set next to group; set it inside group only")
        return self.group


class PairBody(_Request):
    """kwise.v1.Pair: indices of two responses."""

    first: Uint32 = 0
    second: Uint32 = 0


class CompareRequest(ScoreRequest):
    """kwise.v1.CompareRequest. A pair may also be [first, second]; no pairs stand for all."""

    pairs: list[PairBody | tuple[Uint32, Uint32]] = []


def to_group(body: GroupBody, client: str, max_tokens: int) -> Group:
    """Return the group of a request of `client`.

    Raises:
        InvalidRequest: a field is missing, or a response is not of the kind that the prompt needs.
    """
    if body.priority not in _PRIORITIES:
        raise InvalidRequest(
            "priority",
            f"{str(body.priority)[:50]!r} is not a Priority; give interactive or bulk",
            is_quoting=True,
        )
    _check_num_ids(body.prompt, max_tokens)
    prompt = _to_prompt(body.prompt)
    if not body.responses:
        raise InvalidRequest("responses", "there are none; give at least one")
    is_ids = isinstance(prompt, tuple) and not isinstance(prompt[0], Message)
    expected: type = tuple if is_ids else str
    responses = tuple(
        response
        if type(response) is expected
        else _to_response(response, index=index, needs_ids=is_ids)
        for index, response in enumerate(body.responses)
    )
    return Group(
        prompt=prompt,
        responses=responses,  # type: ignore[arg-type]  # all of them are `expected`
        priority=_PRIORITIES[body.priority],
        client=client,
    )


def _check_num_ids(prompt: Any, max_tokens: int) -> None:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        check_num_ids("prompt", len(prompt), max_tokens)


def _to_prompt(prompt: Any) -> Conversation | TemplatedText | TokenIds:
    match prompt:
        case str():
            return plain(prompt)
        case None:
            raise InvalidRequest("prompt", "it is missing")
        case PromptBody():
            return _to_prompt_of_kind(prompt)
        case []:
            raise InvalidRequest("prompt", "it is empty; give at least one message or token id")
    if all(isinstance(item, MessageBody) for item in prompt):
        return _to_conversation(prompt, "prompt")
    if any(isinstance(item, MessageBody) for item in prompt):
        raise InvalidRequest("prompt", "it has both messages and token ids")
    return tuple(prompt)


def _to_prompt_of_kind(prompt: PromptBody) -> Conversation | TemplatedText | TokenIds:
    token_ids = _either(prompt.token_ids, prompt.token_ids_camel, "prompt.token_ids")
    templated = _either(prompt.templated_text, prompt.templated_text_camel, "prompt.templated_text")
    fields = {
        "text": prompt.text,
        "messages": prompt.messages,
        "token_ids": token_ids,
        "templated_text": templated,
    }
    names = [name for name, value in fields.items() if value is not None]
    if len(names) != 1:
        problem = " and ".join(names) + " are" if names else f"none of {', '.join(fields)} is"
        raise InvalidRequest("prompt", f"{problem} set; give one of them")
    if prompt.text is not None:
        return plain(prompt.text)
    if prompt.messages is not None:
        inner = prompt.messages
        messages: Sequence[MessageBody | ProtoMessageBody] = (
            inner.messages if isinstance(inner, ConversationBody) else inner
        )
        return _to_conversation(messages, "prompt.messages")
    if templated is not None:
        return TemplatedText(text=templated)
    if not (ids := _ids(token_ids)):
        raise InvalidRequest("prompt.token_ids", "there are none; give at least one")
    return ids


def _to_conversation(
    messages: Sequence[MessageBody | ProtoMessageBody], field: str
) -> Conversation:
    return to_conversation((Message(role=m.role, content=m.content) for m in messages), field)


def _to_response(response: Any, *, index: int, needs_ids: bool) -> str | TokenIds:
    """Return the content of a response that is not in its short form.

    Raises:
        InvalidRequest: the response is not of the kind that the prompt needs.
    """
    text, ids = None, None
    if isinstance(response, ResponseBody):
        text = response.text
        path = f"responses[{index}].token_ids"
        ids = _ids(_either(response.token_ids, response.token_ids_camel, path))
        if text is not None and ids is not None:
            raise InvalidRequest("", "text and token_ids are set; give one", response=index)
    elif isinstance(response, str):
        text = response
    else:
        ids = response
    content: str | TokenIds | None = ids if needs_ids else text
    if content is None:
        field = "text" if text is not None else "token_ids"
        field = "neither text nor token_ids" if text is None and ids is None else field
        expected = "token_ids" if needs_ids else "text"
        raise InvalidRequest("", f"{field} is set; this prompt needs {expected}", response=index)
    return content


def _ids(ids: TokenIdsBody | TokenIds | None) -> TokenIds | None:
    return ids.ids if isinstance(ids, TokenIdsBody) else ids


def _either(value: Any, camel: Any, path: str) -> Any:
    if value is not None and camel is not None:
        raise InvalidRequest(path, "it is set twice, in snake_case and in camelCase")
    return camel if value is None else value


async def to_pairs(pairs: Sequence[PairBody | tuple[int, int]]) -> list[tuple[int, int]]:
    """Return pairs of indices. They are built in slices, see `in_slices`."""
    converted: list[tuple[int, int]] = []
    async for part in in_slices(pairs, CHEAP_SLICE_ITEMS):
        converted += [p if isinstance(p, tuple) else (p.first, p.second) for p in part]
    return converted
