"""Messages of a row: role and content as in OpenAI's API, or from and value as in ShareGPT.

Names of roles are translated to the standard ones, with a note. Other parts of a message than its
text, such as a tool call, are left for `surroundings.py`, which refuses them.
"""

import ast
import json
import re
import warnings
from typing import Any

from kwise.meanings import message_meaning
from kwise.roles import is_standard, standard_role
from kwise.train.data.rows.fields import as_objects, as_string, refuse, required, string_field
from kwise.train.data.rows.row import Row
from kwise.train.rankings.json_object import RepeatedKey, object_of_pairs
from kwise.types import Conversation, Message

_KEYS = (("role", "content"), ("from", "value"))
_CALLS = ("function_call", "tool_call", "function-call")
# numpy writes no comma between the elements of a list.
_NO_COMMA = re.compile(r"\}\s*\n\s*\{")


def as_messages(value: Any, at: str) -> Conversation:
    """Return the messages of a list; one message may stand without a list around it."""
    messages = []
    # If the role is not a string, the object has lists as values: messages by columns.
    is_one = isinstance(value, Row) and any(isinstance(value.peek(role), str) for role, _ in _KEYS)
    for index, item in enumerate([value] if is_one else as_objects(value, at)):
        messages.append(_message(item, f"{at}[{index}]"))
    if not messages:
        refuse(at, "must not be empty")
    return tuple(messages)


def looks_like_messages(value: Any) -> bool:
    """Return whether to read `value` with `as_messages`, which reports what is wrong with it."""
    if isinstance(value, dict):
        return any(role in value and content in value for role, content in _KEYS)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and any(role in item for role, _ in _KEYS) for item in value)
    )


def resembles_messages(text: str) -> bool:
    """Return whether `text` begins like messages that are written as JSON or by Python."""
    start = text.lstrip()[:200]
    return re.match(r"\[?\s*\{", start) is not None and any(
        f"{quote}{key}{quote}:" in start for pair in _KEYS for key in pair for quote in "\"'"
    )


def messages_in_text(text: str, at: str) -> Any:
    """Return the messages that `text` spells out as JSON or as Python writes a list, or None.

    Tables without nested columns, such as CSV, hold messages so.
    """
    if not resembles_messages(text):
        return None
    try:
        value = json.loads(text, object_pairs_hook=object_of_pairs)
    except RepeatedKey as error:
        refuse(at, f"is JSON of messages, but {error}")
    except (ValueError, RecursionError):
        value = _python_literal(_NO_COMMA.sub("}, {", text.strip()))
        if value is None and text.rstrip().endswith("]"):
            refuse(at, "looks like a list of messages in a text, but is neither JSON nor Python's")
    return value if looks_like_messages(value) else None


def _python_literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an unknown escape such as \\d
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _message(message: Row, at: str) -> Message:
    message.is_message = True
    role_key, content_key = _KEYS[1] if "role" not in message and "from" in message else _KEYS[0]
    if role_key == "from":
        message.note("messages with from and value, as in ShareGPT, are read as role and content")
    role = string_field(message, role_key, at)
    if role in _CALLS:
        refuse(f"{at}.{role_key}", f"is {role}, a call of a tool, which kwise cannot train on")
    if (standard := standard_role(role)) != role:
        message.note(f"role {role[:40]!a} is read as {standard}")
    elif not is_standard(role):
        message.note(f"role {role[:40]!a} is not a usual one; the chat template has to know it")
    return Message(role=standard, content=_content(message, content_key, at))


def _content(message: Row, key: str, at: str) -> str:
    """Return the text of a message, a string or OpenAI's parts `[{"type": "text", "text": …}]`.

    Text parts are joined without a separator.
    """
    if not message.has(key):
        for other in message:
            if (meaning := message_meaning(other)) and message.has(other):
                refuse(at, f"has {other}, {meaning.value}, and no {key}; kwise reads texts only")
    content = required(message, key, at)
    if not isinstance(content, list | dict):
        return as_string(content, f"{at}.{key}")
    parts = as_objects(content, f"{at}.{key}")
    for index, part in enumerate(parts):
        if part.get("type") != "text":
            part_type = str(part.get("type"))[:40]
            refuse(f"{at}.{key}[{index}].type", f"is {part_type!a}; only text can be read")
    return "".join(
        string_field(part, "text", f"{at}.{key}[{index}]") for index, part in enumerate(parts)
    )
