"""A row of the output as one line of JSON."""

import json
from typing import Any


def json_line(fields: dict[str, Any]) -> bytes:
    """Return the fields as a line in UTF-8.

    NaN and infinity, which are not JSON, become null. Half of a surrogate pair, which UTF-8 cannot
    encode, stays the escape that it was in the input.
    """
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    except ValueError:
        fields = json.loads(json.dumps(fields), parse_constant=lambda _: None)
        text = json.dumps(fields, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(fields).encode() + b"\n"
