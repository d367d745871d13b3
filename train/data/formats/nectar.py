"""Nectar: K = 7 answers with ranks, rank 1 the best.

    {"prompt": "\\n\\nHuman: …\\n\\nAssistant: ", "answers": [{"answer", "model", "rank"}, …]}

https://huggingface.co/datasets/berkeley-nest/Nectar
"""

from collections.abc import Iterator

from kwise.train.data.rows.fields import (
    as_objects,
    as_ranks,
    number_field,
    required,
    string_field,
)
from kwise.train.data.rows.items import RankedResponses, ReadOptions, Row, RowItem
from kwise.train.data.rows.transcript import parse_hh_prompt


def read_nectar(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of a row."""
    texts, ranks = [], []
    for index, answer in enumerate(as_objects(required(row, "answers"), "answers")):
        at = f"answers[{index}]"
        texts.append(string_field(answer, "answer", at))
        ranks.append(number_field(answer, "rank", at))
    yield RankedResponses(
        prompt=parse_hh_prompt(string_field(row, "prompt"), "prompt"),
        responses=tuple(texts),
        ranks=as_ranks(ranks, "answers", "rank"),
    )
