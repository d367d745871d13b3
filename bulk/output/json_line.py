"""A row of the output as one line of JSON."""

import json
from base64 import b64encode
from datetime import date, time
from typing import Any


def json_line(fields: dict[str, Any]) -> bytes:
    """Return the fields as a line in UTF-8.

    NaN and infinity, which are not JSON, become null. Values of Parquet that JSON lacks become
    texts: times in ISO 8601, bytes in base64. Half of a surrogate pair, which UTF-8 cannot encode,
    stays the escape that it was in the input.
    """
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_as_text)
    except ValueError:
        text = json.dumps(fields, default=_as_text)
        fields = json.loads(text, parse_constant=lambda _: None)
        text = json.dumps(fields, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(fields, default=_as_text).encode() + b"\n"


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | time) else str(value)
