"""kwise's own schema, `kwise.train.rankings.schema`. Rows keep their ids and metadata."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from kwise.train.data.rows.fields import (
    as_objects,
    as_rank,
    number_field,
    refuse,
    required,
    string_field,
)
from kwise.train.data.rows.items import RankedResponses, ReadOptions, RowItem
from kwise.train.data.rows.read_row import RowContents, read_row
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.shapes import prompt_field
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import IGNORED_KEYS, ranking_of


def read_kwise(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of a row that has kwise's schema.

    In Parquet every row has every column, so a row with ranks has null scores if another row has
    scores.
    """
    responses = as_objects(required(row, "responses"), "responses")
    is_scored = any(response.has("score") for response in responses)
    texts, labels = [], []
    for index, response in enumerate(responses):
        at = f"responses[{index}]"
        texts.append(string_field(response, "text", at))
        if is_scored and response.has("rank"):
            refuse(at, "ranks and scores are mixed in one ranking")
        labels.append(
            number_field(response, "score", at)
            if is_scored
            else as_rank(required(response, "rank", at), f"{at}.rank")
        )
    yield RankedResponses(
        prompt=prompt_field(row, "prompt"),
        responses=tuple(texts),
        scores=tuple(labels) if is_scored else None,
        ranks=None if is_scored else tuple(int(label) for label in labels),
        ranking_keys=_kept(row),
        response_keys=tuple(_kept(response) for response in responses),
    )


def read_strictly(values: Mapping[str, Any]) -> RowContents:
    """Return the ranking of a row, of which nothing may be left out.

    The row is passed on as it is, so that it is checked as a whole, unless its texts spell out
    turns.
    """
    row = _without_nulls(values)
    given = RankedResponses(prompt=(), responses=(), row=row)
    unchanged = RowContents(items=[given], notes=Counter(), unread=Counter())
    try:
        ranking_of(row, origin="", allow_tied=True)
    except RankingsError:
        return unchanged
    contents = read_row(read_kwise, row, ReadOptions(keep_prompt=True))
    return contents if contents.notes else unchanged


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of kwise's schema without the null values that Parquet adds to it."""
    row = _present(values)
    if isinstance(row.get("responses"), list):
        row["responses"] = [
            _present(item) if isinstance(item, dict) else item for item in row["responses"]
        ]
    return row


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _kept(row: Row) -> Mapping[str, Any]:
    """Return the ids and metadata of `row`; null values are left out."""
    return {key: row[key] for key in row if key in IGNORED_KEYS and row[key] is not None}
