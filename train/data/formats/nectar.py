"""Nectar: K = 7 answers with ranks, rank 1 the best.

    {"prompt": "\\n\\nHuman: …\\n\\nAssistant: ", "answers": [{"answer", "model", "rank"}, …]}

https://huggingface.co/datasets/berkeley-nest/Nectar
"""

from collections.abc import Iterator

from kwise.train.data.rows.fields import as_objects, as_rank, required, string_field
from kwise.train.data.rows.items import RankedResponses, ReadOptions, RowItem
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.shapes import prompt_field
from kwise.train.data.rows.transcript import is_hh, parse_hh_prompt


def read_nectar(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of a row."""
    texts, ranks = [], []
    for index, answer in enumerate(as_objects(required(row, "answers"), "answers")):
        at = f"answers[{index}]"
        texts.append(string_field(answer, "answer", at))
        ranks.append(as_rank(required(answer, "rank", at), f"{at}.rank"))
    prompt = required(row, "prompt")
    yield RankedResponses(
        prompt=parse_hh_prompt(prompt, "prompt")
        if isinstance(prompt, str) and is_hh(prompt)
        else prompt_field(row, "prompt"),
        responses=tuple(texts),
        ranks=tuple(ranks),
    )
