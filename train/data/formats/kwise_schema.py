"""kwise's own schema, `kwise.train.rankings.schema`. Rows are copied with ids and metadata."""

from collections.abc import Iterator
from typing import Any

from kwise.train.data.rows.fields import (
    as_messages,
    as_objects,
    as_ranks,
    looks_like_messages,
    number_field,
    required,
    string_field,
    user_prompt,
)
from kwise.train.data.rows.items import RankedResponses, ReadOptions, Row, RowItem


def read_kwise(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of a row that has kwise's schema."""
    objects = as_objects(required(row, "responses"), "responses")
    responses = [_without_nulls(response) for response in objects]
    row = {**_without_nulls(row), "responses": responses}
    paths = [f"responses[{index}]" for index in range(len(responses))]
    texts = tuple(
        string_field(response, "text", at) for response, at in zip(responses, paths, strict=True)
    )
    key = "score" if responses and "score" in responses[0] else "rank"
    labels = [
        number_field(response, key, at) for response, at in zip(responses, paths, strict=True)
    ]
    if looks_like_messages(row.get("prompt")):
        prompt = as_messages(row["prompt"], "prompt")
    else:
        prompt = user_prompt(string_field(row, "prompt"))
    if key == "score":
        yield RankedResponses(prompt=prompt, responses=texts, scores=tuple(labels), row=row)
    else:
        ranks = as_ranks(labels, "responses", "rank")
        yield RankedResponses(prompt=prompt, responses=texts, ranks=ranks, row=row)


def _without_nulls(row: Row) -> dict[str, Any]:
    """Return `row` without its null values.

    In Parquet every row has every column, so a row with ranks has a null score if another row has
    scores.
    """
    return {key: value for key, value in row.items() if value is not None}
