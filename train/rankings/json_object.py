"""Objects of JSON that must not have a key twice, and why a text is not JSON."""

import json
from typing import Any


class RepeatedKey(ValueError):
    """An object has a key twice; the message names it."""


def object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of a JSON decoder's `pairs`; give it as `object_pairs_hook`.

    Raises:
        RepeatedKey: a key occurs twice. Python would keep the last value and drop the others.
    """
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in parsed if keys.count(key) > 1)
        raise RepeatedKey(f"an object has the key {repeated[:40]!a} twice")
    return parsed


def json_reason(error: json.JSONDecodeError) -> str:
    """Return the reason of `error` without the "starting at" that begins its position."""
    return error.msg.removesuffix(" at").removesuffix(" starting")
