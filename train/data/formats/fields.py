"""Fields of a row, checked: each function returns what it is asked for or raises `RowProblem` with the field's path.

Datasets come through JSON or through Arrow. There a list of structs is read as a list of dicts, but older Hugging Face
datasets declare it as `Sequence({…})`, which is stored as one dict of lists of equal length
(https://huggingface.co/docs/datasets/about_dataset_features): `records` takes both.
"""

import math
from typing import Any, NoReturn

from kwise.train.data.formats.items import Row, RowProblem
from kwise.train.rankings.json_value import json_type
from kwise.types import Conversation, Message


def refuse(field: str, problem: str) -> NoReturn:
    raise RowProblem(field, problem)


def required(row: Row, key: str, at: str = "row") -> Any:
    if key not in row or row[key] is None:
        refuse(at, f"has no {key!r}")
    return row[key]


def text(row: Row, key: str, at: str = "") -> str:
    value = required(row, key, at or "row")
    return as_text(value, _join(at, key))


def as_text(value: Any, at: str) -> str:
    if not isinstance(value, str):
        refuse(at, f"must be a text, not {json_type(value)}")
    return value


def is_unicode(said: str) -> bool:
    """Texts that were cut by UTF-16's units have half of a surrogate pair; no tokenizer takes them, and UTF-8 has none."""
    try:
        said.encode()
    except UnicodeEncodeError:
        return False
    return True


def number(row: Row, key: str, at: str = "") -> float:
    value = required(row, key, at or "row")
    return as_number(value, _join(at, key))


def as_number(value: Any, at: str) -> float:
    """A finite number, or a text that is one: UltraFeedback has scores of both kinds."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            refuse(at, "is a text that is no number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(at, f"must be a number, not {json_type(value)}")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        is_finite = False
    if not is_finite:
        refuse(at, "must be finite")
    return value


def nested(row: Row, path: str, at: str = "") -> tuple[Any, str]:
    """(the value at `path`, where it is). A path is a key, one with dots in it too, or else keys of nested objects with dots
    between them. None where an object on the way is null, as Arrow says that it is missing."""
    value: Any = row
    for key in [path] if path in row else path.split("."):
        if value is None:
            break
        if not isinstance(value, dict):
            refuse(at, f"must be an object that has {key[:40]!a}, not {json_type(value)}")
        if key not in value:
            refuse(at or "row", f"has no {key!r}")
        value, at = value[key], _join(at, key)
    return value, at


def records(value: Any, at: str) -> list[dict[str, Any]]:
    """A list of objects, or one object of equally long lists."""
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(column, list) for column in value.values())
    ):
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
    if not isinstance(value, list):
        refuse(at, f"must be a list, not {json_type(value)}")
    return value


def messages(value: Any, at: str) -> Conversation:
    """Messages with `role` and `content`, a text or parts; one message may stand without its list. Other keys (num_tokens, …) are
    ignored, but for tool calls, which a response cannot say."""
    turns = []
    is_one = isinstance(value, dict) and isinstance(
        value.get("role"), str
    )  # else its values are lists: messages by columns
    for index, item in enumerate([value] if is_one else records(value, at)):
        here = f"{at}[{index}]"
        if item.get("tool_calls"):
            refuse(here, "has tool_calls, which kwise cannot train on")
        turns.append(Message(role=text(item, "role", here), content=_content(item, here)))
    if not turns:
        refuse(at, "must not be empty")
    return tuple(turns)


def _content(message: Row, at: str) -> str:
    """A text, or parts as OpenAI's API has them, `[{"type": "text", "text": …}]`: those of text are one text, cut anywhere."""
    content = required(message, "content", at)
    if not isinstance(content, list | dict):
        return as_text(content, f"{at}.content")
    parts = records(content, f"{at}.content")
    for index, part in enumerate(parts):
        if part.get("type") != "text":
            refuse(
                f"{at}.content[{index}].type",
                f"is {str(part.get('type'))[:40]!a}; only text can be read",
            )
    return "".join(text(part, "text", f"{at}.content[{index}]") for index, part in enumerate(parts))


def is_messages(value: Any) -> bool:
    """Whether this looks like messages; `messages` says what is wrong with them."""
    if isinstance(value, dict):
        return "role" in value and "content" in value
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" in item for item in value)
    )


def user(content: str) -> Conversation:
    """The prompt that is one text."""
    return (Message(role="user", content=content),)


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
