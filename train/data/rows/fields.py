"""Checked access to the fields of a row.

Each function returns a value of the type that its name says, or raises `RowProblem` with the
path of the field, which is the parameter `at`.

A list of objects has two forms. Older Hugging Face data sets declare it as `Sequence({…})`, which
Arrow stores as one object of equally long lists; `as_objects` accepts both forms
(https://huggingface.co/docs/datasets/about_dataset_features).
"""

import math
from typing import Any, NoReturn

from kwise.train.data.rows.items import Row, RowProblem
from kwise.train.rankings.json_value import json_type
from kwise.types import Conversation, Message


def refuse(field: str, problem: str) -> NoReturn:
    """Raise `RowProblem`."""
    raise RowProblem(field, problem)


def required(row: Row, key: str, at: str = "row") -> Any:
    """Return the value of `key`, which must neither be missing nor null."""
    if key not in row or row[key] is None:
        refuse(at, f"has no {key!r}")
    return row[key]


def string_field(row: Row, key: str, at: str = "") -> str:
    """Return the string at `key` of `row`; `at` is the path of `row`."""
    value = required(row, key, at or "row")
    return as_string(value, join_path(at, key))


def as_string(value: Any, at: str) -> str:
    """Return `value` if it is a string."""
    if not isinstance(value, str):
        refuse(at, f"must be a string, not {json_type(value)}")
    return value


def is_encodable(text: str) -> bool:
    """Return False if `text` has half of a surrogate pair.

    Texts that were cut between UTF-16 units have one. UTF-8 cannot encode it and no tokenizer
    accepts it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def number_field(row: Row, key: str, at: str = "") -> float:
    """Return the finite number at `key` of `row`; `at` is the path of `row`."""
    value = required(row, key, at or "row")
    return as_number(value, join_path(at, key))


def as_number(value: Any, at: str) -> float:
    """Return `value` if it is a finite number or a string that contains one.

    UltraFeedback has scores of both kinds.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            refuse(at, "is a string that is not a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(at, f"must be a number, not {json_type(value)}")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        is_finite = False
    if not is_finite:
        refuse(at, "must be finite")
    return value


def as_ranks(values: list[float], at: str, key: str) -> tuple[int, ...]:
    """Return ranks as integers; some readers give Nectar's as 1.0.

    at: path of the list of responses; key: name of the rank in a response.
    """
    for index, rank in enumerate(values):
        if rank != int(rank) or rank < 1:
            refuse(f"{at}[{index}].{key}", "must be an integer of at least 1 (1 is the best)")
    return tuple(int(rank) for rank in values)


def value_at_path(row: Row, path: str, at: str = "") -> tuple[Any, str]:
    """Return (value, its path from the root) for a key, or keys joined by dots, of nested objects.

    A key that itself contains dots takes precedence. The value is None if an object on the way is
    null, because Arrow stores a missing object as null.
    """
    value: Any = row
    for key in [path] if path in row else path.split("."):
        if value is None:
            break
        if not isinstance(value, dict):
            refuse(at, f"must be an object that has {key[:40]!a}, not {json_type(value)}")
        if key not in value:
            refuse(at or "row", f"has no {key!r}")
        value, at = value[key], join_path(at, key)
    return value, at


def as_objects(value: Any, at: str) -> list[dict[str, Any]]:
    """Return a list of objects, given as such or as one object of equally long lists."""
    if isinstance(value, dict) and value and all(isinstance(c, list) for c in value.values()):
        lengths = {len(column) for column in value.values()}
        if len(lengths) != 1:
            refuse(at, "is an object of lists of different lengths")
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        refuse(at, f"must be a list, not {json_type(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            refuse(f"{at}[{index}]", f"must be an object, not {json_type(item)}")
    return value


def as_list(value: Any, at: str) -> list[Any]:
    """Return `value` if it is a list."""
    if not isinstance(value, list):
        refuse(at, f"must be a list, not {json_type(value)}")
    return value


def as_messages(value: Any, at: str) -> Conversation:
    """Return messages with `role` and `content`; one message may stand without a list around it.

    Other keys (num_tokens, …) are ignored, except tool calls, which a response cannot express.
    """
    messages = []
    # If "role" is not a string, the object has lists as values: messages by columns.
    is_one = isinstance(value, dict) and isinstance(value.get("role"), str)
    for index, item in enumerate([value] if is_one else as_objects(value, at)):
        here = f"{at}[{index}]"
        if item.get("tool_calls"):
            refuse(here, "has tool_calls, which kwise cannot train on")
        messages.append(
            Message(role=string_field(item, "role", here), content=_content(item, here))
        )
    if not messages:
        refuse(at, "must not be empty")
    return tuple(messages)


def _content(message: Row, at: str) -> str:
    """Return the text of a message, a string or OpenAI's parts `[{"type": "text", "text": …}]`.

    Text parts are joined without a separator.
    """
    content = required(message, "content", at)
    if not isinstance(content, list | dict):
        return as_string(content, f"{at}.content")
    parts = as_objects(content, f"{at}.content")
    for index, part in enumerate(parts):
        if part.get("type") != "text":
            part_type = str(part.get("type"))[:40]
            refuse(f"{at}.content[{index}].type", f"is {part_type!a}; only text can be read")
    return "".join(
        string_field(part, "text", f"{at}.content[{index}]") for index, part in enumerate(parts)
    )


def looks_like_messages(value: Any) -> bool:
    """Return whether to read `value` with `as_messages`, which reports what is wrong with it."""
    if isinstance(value, dict):
        return "role" in value and "content" in value
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" in item for item in value)
    )


def user_prompt(content: str) -> Conversation:
    """Return the prompt that consists of one message of the user."""
    return (Message(role="user", content=content),)


def join_path(at: str, key: str) -> str:
    """Return the path of `key` in the object at `at`."""
    return f"{at}.{key}" if at else key
