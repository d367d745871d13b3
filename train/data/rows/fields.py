"""Checked access to the fields of a row.

Each function returns a value of the type that its name says, or raises `RowProblem` with the
path of the field, which is the parameter `at`.

A list of objects has two forms. Older Hugging Face data sets declare it as `Sequence({…})`, which
Arrow stores as one object of equally long lists; `as_objects` accepts both forms
(https://huggingface.co/docs/datasets/about_dataset_features).
"""

import math
from typing import Any, NoReturn

from kwise.train.data.rows.items import RowProblem
from kwise.train.data.rows.row import Row
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


def required_object(row: Row, key: str, at: str = "") -> Row:
    """Return the object at `key` of `row`; `at` is the path of `row`."""
    value = required(row, key, at or "row")
    if not isinstance(value, Row):
        refuse(join_path(at, key), f"must be an object, not {json_type(value)}")
    return value


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


def as_rank(value: Any, at: str) -> int:
    """Return a rank as an integer; some readers give Nectar's as 1.0."""
    rank = as_number(value, at)
    if rank != int(rank) or rank < 1:
        refuse(at, "must be an integer of at least 1 (1 is the best)")
    return int(rank)


def value_at_path(row: Row, path: str, at: str = "") -> tuple[Any, str]:
    """Return (value, its path from the root) for a key, or keys joined by dots, of nested objects.

    A key that itself contains dots takes precedence. The value is None if an object on the way is
    null, because Arrow stores a missing object as null.
    """
    value: Any = row
    for key in [path] if path in row else path.split("."):
        if value is None:
            break
        if not isinstance(value, Row):
            refuse(at, f"must be an object that has {key[:40]!a}, not {json_type(value)}")
        if key not in value:
            refuse(at or "row", f"has no {key!r}")
        value, at = value[key], join_path(at, key)
    return value, at


def as_objects(value: Any, at: str) -> list[Row]:
    """Return a list of objects, given as such or as one object of equally long lists."""
    if isinstance(value, Row):
        if value.objects is not None:
            return value.objects
        columns = dict(value)
        if columns and all(isinstance(cells, list) for cells in columns.values()):
            if len({len(cells) for cells in columns.values()}) != 1:
                refuse(at, "is an object of lists of different lengths")
            value.was_read.update(columns)
            value.objects = [
                Row(dict(zip(columns, cells, strict=True)), value.notes)
                for cells in zip(*columns.values(), strict=True)
            ]
            return value.objects
    for index, item in enumerate(as_list(value, at)):
        if not isinstance(item, Row):
            refuse(f"{at}[{index}]", f"must be an object, not {json_type(item)}")
    return list(value)


def as_list(value: Any, at: str) -> list[Any]:
    """Return `value` if it is a list."""
    if not isinstance(value, list):
        refuse(at, f"must be a list, not {json_type(value)}")
    return value


def user_prompt(content: str) -> Conversation:
    """Return the prompt that consists of one message of the user."""
    return (Message(role="user", content=content),)


def join_path(at: str, key: str) -> str:
    """Return the path of `key` in the object at `at`."""
    return f"{at}.{key}" if at else key
