"""Make samples of the fields in which HTTP bodies hold messages, texts or token ids."""

from collections.abc import Sequence
from typing import Literal, cast

import msgspec

from kwise.engine.server.samples.sample import Sample, of_templated, of_token_ids
from kwise.errors import InvalidRequest
from kwise.types import Conversation, Message

# A text, a list of texts, token ids, or a list of sequences of token ids. `of_input` refuses
# mixtures, which msgspec cannot tell apart.
Input = str | list[str | int | list[int]]


class TextPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a message's content. Text is the only type that kwise reads."""

    text: str
    type: Literal["text"] = "text"


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message of a conversation in OpenAI's form. `content` is a text, or one part of text."""

    role: str
    content: str | list[TextPart]


def conversation(messages: Sequence[ChatMessage], field: str) -> Conversation:
    """Return the conversation of the messages in the body's field `field`.

    Raises:
        InvalidRequest: there is no message, or one has no role or several parts.
    """
    if not messages:
        raise InvalidRequest(field, "there are none; give at least one")
    converted: list[Message] = []
    for index, message in enumerate(messages):
        if not message.role:
            raise InvalidRequest(f"{field}[{index}].role", "it is empty")
        content = message.content
        if isinstance(content, list):
            if len(content) != 1:
                raise InvalidRequest(
                    f"{field}[{index}].content",
                    f"it has {len(content)} parts; give one, or a text, because how parts are "
                    "joined would change the reward",
                )
            content = content[0].text
        converted.append(Message(role=message.role, content=content))
    return tuple(converted)


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
        )
    return Sample(
        prompt=tuple(prompt),
        response=last.content,
        prompt_field=field,
        response_field=f"{field}[{len(prompt)}].content",
    )


def of_input(given: Input, field: str = "input") -> list[Sample]:
    """Return the samples of a field that holds texts or token ids of whole conversations.

    Raises:
        InvalidRequest: the list is empty, or its items are of different types.
    """
    if isinstance(given, str):
        return of_templated([given], [field])
    if not given:
        raise InvalidRequest(field, "the list is empty; give at least one item")
    kind = type(given[0])
    for index, item in enumerate(given):
        if type(item) is not kind:
            raise InvalidRequest(
                f"{field}[{index}]",
                "it is of another type than the items before it; give only texts, only token ids, "
                "or only lists of token ids",
            )
    if kind is int:
        return of_token_ids([cast(list[int], given)], [field])
    fields = [f"{field}[{index}]" for index in range(len(given))]
    if kind is str:
        return of_templated(cast(list[str], given), fields)
    return of_token_ids(cast(list[list[int]], given), fields)
