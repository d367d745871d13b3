"""Parsing of JSON with error messages for people."""

import json
from typing import Any

from kwise.train.rankings.json_object import RepeatedKey, json_reason, object_of_pairs

UNREADABLE_JSON = (
    "not readable as JSON: it is nested too deeply or has a number of thousands of digits"
)


class JsonError(ValueError):
    """The reason why bytes cannot be parsed as JSON, in words for people."""


def parse_json(content: bytes) -> Any:
    """Return the value that `content`, UTF-8, contains.

    Raises:
        JsonError: `content` is not UTF-8, is not JSON, has an object with the same key twice, or
            is too deep or too large for Python.
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=object_of_pairs)
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {json_reason(error)} at column {error.colno}") from None
    except RepeatedKey as error:
        raise JsonError(str(error)) from None
    except (ValueError, RecursionError):
        raise JsonError(UNREADABLE_JSON) from None


def json_type(value: Any) -> str:
    """Return JSON's name for the type of `value`, with its article, for error messages.

    Types that JSON lacks, as dates from Parquet, have their Python name.
    """
    if isinstance(value, dict):
        return "an object"
    names = {
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)
