"""Formats whose rows are rankings already.

- kwise, our own (`kwise.train.rankings`); rows are copied with their ids and metadata.
- nectar, `{"prompt": "\\n\\nHuman: …\\n\\nAssistant: ", "answers": [{"answer", "model", "rank"}, …]}`, K = 7, rank 1 the best
  (https://huggingface.co/datasets/berkeley-nest/Nectar).
"""

from collections.abc import Iterator
from typing import Any

from kwise.train.data.formats.fields import (
    is_messages,
    messages,
    number,
    records,
    refuse,
    required,
    text,
    user,
)
from kwise.train.data.formats.items import Item, Ranked, ReadOptions, Row
from kwise.train.data.formats.transcript import parse_hh_prompt


def read_kwise(row: Row, _: ReadOptions) -> Iterator[Item]:
    responses = [
        _without_nulls(response) for response in records(required(row, "responses"), "responses")
    ]
    row = {**_without_nulls(row), "responses": responses}
    at = [f"responses[{index}]" for index in range(len(responses))]
    texts = tuple(
        text(response, "text", here) for response, here in zip(responses, at, strict=True)
    )
    judged = "score" if responses and "score" in responses[0] else "rank"
    judgements = tuple(
        number(response, judged, here) for response, here in zip(responses, at, strict=True)
    )
    prompt = (
        messages(row["prompt"], "prompt")
        if is_messages(row.get("prompt"))
        else user(text(row, "prompt"))
    )
    if judged == "score":
        yield Ranked(prompt=prompt, responses=texts, scores=judgements, row=row)
    else:
        yield Ranked(
            prompt=prompt, responses=texts, ranks=_whole(judgements, "responses", "rank"), row=row
        )


def read_nectar(row: Row, _: ReadOptions) -> Iterator[Item]:
    answers = records(required(row, "answers"), "answers")
    at = [f"answers[{index}]" for index in range(len(answers))]
    yield Ranked(
        prompt=parse_hh_prompt(text(row, "prompt"), "prompt"),
        responses=tuple(
            text(answer, "answer", here) for answer, here in zip(answers, at, strict=True)
        ),
        ranks=_whole(
            tuple(number(answer, "rank", here) for answer, here in zip(answers, at, strict=True)),
            "answers",
            "rank",
        ),
    )


def _without_nulls(row: Row) -> dict[str, Any]:
    """In Parquet every row has every column: one with ranks has a null for the score that another row has."""
    return {key: value for key, value in row.items() if value is not None}


def _whole(ranks: tuple[float, ...], at: str, key: str) -> tuple[int, ...]:
    """Ranks as whole numbers: Nectar's come out of some readers as 1.0."""
    for index, rank in enumerate(ranks):
        if rank != int(rank) or rank < 1:
            refuse(f"{at}[{index}].{key}", "must be a whole number from 1 (the best) on")
    return tuple(int(rank) for rank in ranks)
