"""A ranking as a line of JSON in kwise's schema."""

import json
from typing import Any

from kwise.train.data.rows.fields import is_encodable
from kwise.train.data.rows.items import RankedResponses


def json_line(ranked: RankedResponses) -> bytes:
    """Return the line, with its newline. A prompt of one user message is written as a string."""
    row = ranked.row if ranked.row is not None else _row(ranked)
    line = json.dumps(row, ensure_ascii=False, default=str)
    if not is_encodable(line):
        # UTF-8 cannot encode half of a surrogate pair. Its escape reaches `parse_ranking`, which
        # names the field.
        line = json.dumps(row, default=str)
    return line.encode() + b"\n"


def _row(ranked: RankedResponses) -> dict[str, Any]:
    messages = [{"role": message.role, "content": message.content} for message in ranked.prompt]
    is_string = len(messages) == 1 and messages[0]["role"] == "user"
    key, labels = ("rank", ranked.ranks) if ranked.scores is None else ("score", ranked.scores)
    return {
        "prompt": messages[0]["content"] if is_string else messages,
        "responses": [
            {"text": text, key: label}
            for text, label in zip(ranked.responses, labels or (), strict=True)
        ],
    }
