"""A row with a list of responses that each have a score."""

from collections.abc import Iterator
from typing import Any

from kwise.train.data.rows.fields import (
    as_number,
    as_objects,
    as_string,
    required,
    value_at_path,
)
from kwise.train.data.rows.items import RankedResponses, RowItem, Skipped
from kwise.train.data.rows.row import Row
from kwise.types import Conversation

NO_SCORE = Skipped(what="response", reason="no score")
_MISSING = (None, "N/A", "")  # UltraFeedback has "N/A"


def read_scored_list(
    row: Row, prompt: Conversation, list_key: str, text_key: str, score_column: str
) -> Iterator[RowItem]:
    """Yield the ranking of the responses that have a score, and `NO_SCORE` for each other one.

    list_key: key of the list in `row`; text_key: key of the text in a response; score_column: key
    of the score in a response, or a path of keys joined by dots.
    """
    responses, scores = [], []
    for index, response in enumerate(as_objects(required(row, list_key), list_key)):
        at = f"{list_key}[{index}]"
        text = response.get(text_key)
        if (score := score_at_path(response, score_column, at)) is None:
            yield NO_SCORE
            continue
        responses.append(as_string(text, f"{at}.{text_key}"))
        scores.append(score)
    yield RankedResponses(prompt=prompt, responses=tuple(responses), scores=tuple(scores))


def score_at_path(row: Row, column: str, at: str = "") -> float | None:
    """Return the score at the path `column` of `row`; None if it is missing."""
    return as_score(*value_at_path(row, column, at))


def as_score(value: Any, at: str) -> float | None:
    """Return the score `value`, which is at the path `at`; None if it is missing."""
    return None if value in _MISSING else as_number(value, at)
