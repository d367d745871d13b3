"""Convert the messages, texts or token ids of an HTTP body to samples."""

from collections.abc import Sequence
from typing import Literal, cast

import msgspec

from kwise.engine.served_model import ServedModel
from kwise.engine.server.conversation import to_conversation
from kwise.engine.server.samples.sample import (
    Sample,
    check_num_ids,
    of_templated,
    of_token_ids,
)
from kwise.errors import InvalidRequest
from kwise.types import Conversation, Message

# A text, a list of texts, token ids, or a list of sequences of token ids. msgspec accepts mixtures
# as well, and `of_input` refuses them.
Input = str | list[str | int | list[int]]


class TextPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a message's content. Text is the only type that kwise reads."""

    text: str
    type: Literal["text"] = "text"


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message in OpenAI's form. `content` is a string, or a list of one part."""

    role: str
    content: str | list[TextPart]


def conversation(messages: Sequence[ChatMessage], field: str) -> Conversation:
    """Return the conversation of the messages in the body's field `field`.

    Raises:
        InvalidRequest: there is no message, or one has no role or several parts.
    """
    return to_conversation(
        (
            Message(role=message.role, content=_content(message, f"{field}[{index}].content"))
            for index, message in enumerate(messages)
        ),
        field,
    )


def _content(message: ChatMessage, field: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if len(content) != 1:
        raise InvalidRequest(
            field,
            f"it has {len(content)} parts; give a string or one part, because the way of joining "
            "parts would change the reward",
        )
    return content[0].text


def of_messages(messages: Sequence[ChatMessage], field: str = "messages") -> Sample:
    """Return the sample of a whole conversation, whose last message is scored.

    Raises:
        InvalidRequest: a message is malformed, or the last two are not a prompt and an answer.
    """
    *prompt, last = conversation(messages, field)
    if last.role != "assistant" or not prompt:
        raise InvalidRequest(
            f"{field}[{len(prompt)}].role",
            f"it is {last.role[:50]!r}, at {len(messages)} messages; the conversation must end "
            "with the assistant's message that is to be scored, after at least one other",
            is_quoting=True,
        )
    return Sample(
        prompt=tuple(prompt),
        response=last.content,
        prompt_field=field,
        response_field=f"{field}[{len(prompt)}].content",
    )


async def of_input(model: ServedModel, conversations: Input, field: str = "input") -> list[Sample]:
    """Return the samples of a field that holds texts or token ids of whole conversations.

    Raises:
        InvalidRequest: the list is empty, its items are of different types, or a list of token ids
            is too long.
    """
    max_tokens = model.max_tokens
    if isinstance(conversations, str):
        return of_templated([conversations], [field])
    if not conversations:
        raise InvalidRequest(field, "the list is empty; give at least one item")
    item_type = type(conversations[0])
    if item_type is int:
        check_num_ids(field, len(conversations), max_tokens)  # before a look at each of them
    for index, item in enumerate(conversations):
        if type(item) is not item_type:
            raise InvalidRequest(
                f"{field}[{index}]",
                "its type differs from that of the items before it; give only texts, only token "
                "ids, or only lists of token ids",
            )
    if item_type is int:
        return await of_token_ids([cast(list[int], conversations)], [field], max_tokens)
    fields = [f"{field}[{index}]" for index in range(len(conversations))]
    if item_type is str:
        return of_templated(cast(list[str], conversations), fields)
    return await of_token_ids(cast(list[list[int]], conversations), fields, max_tokens)
