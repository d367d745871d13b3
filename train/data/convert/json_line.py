"""A ranking as a line of JSON in kwise's schema."""

import json
from collections.abc import Mapping
from typing import Any

from kwise.train.data.rows.items import RankedResponses


def json_line(row: Mapping[str, Any]) -> bytes:
    """Return the line of a row that has passed `ranking_of`, with its newline.

    An id or metadata may have half of a surrogate pair, which only an escape can express.
    """
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        return line.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, default=str).encode() + b"\n"


def row_of(ranked: RankedResponses) -> Mapping[str, Any]:
    """Return the row in kwise's schema. A prompt of one user message becomes a string."""
    if ranked.row is not None:
        return ranked.row
    messages = [{"role": message.role, "content": message.content} for message in ranked.prompt]
    is_string = len(messages) == 1 and messages[0]["role"] == "user"
    key, labels = ("rank", ranked.ranks) if ranked.scores is None else ("score", ranked.scores)
    others: tuple[Mapping[str, Any], ...] = ranked.response_keys or ({},) * len(ranked.responses)
    return {
        **ranked.ranking_keys,
        "prompt": messages[0]["content"] if is_string else messages,
        "responses": [
            {"text": text, key: label, **other}
            for text, label, other in zip(ranked.responses, labels or (), others, strict=True)
        ],
    }
