"""Make conversations of the messages of a request, whatever protocol it came in."""

from collections.abc import Iterable

from kwise.errors import InvalidRequest
from kwise.types import Conversation, Message


def plain(text: str) -> Conversation:
    """Return the conversation of a plain text: one turn of the user."""
    return (Message(role="user", content=text),)


def to_conversation(messages: Iterable[Message], field: str) -> Conversation:
    """Return the conversation of the messages in a field of a request.

    Args:
        messages: the messages, as the request gives them.
        field: the name of the field, for errors.

    Raises:
        InvalidRequest: there is no message, or one has no role.
    """
    conversation: list[Message] = []
    for index, message in enumerate(messages):
        if not message.role:
            raise InvalidRequest(f"{field}[{index}].role", "it is empty")
        conversation.append(message)
    if not conversation:
        raise InvalidRequest(field, "there are none; give at least one")
    return tuple(conversation)
