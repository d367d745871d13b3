"""HH-RLHF: two transcripts "\\n\\nHuman: …\\n\\nAssistant: …" whose common turns are the prompt.

    {"chosen": "…", "rejected": "…"}

https://huggingface.co/datasets/Anthropic/hh-rlhf; Bai et al. 2022, arXiv:2204.05862
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kwise.train.data.rows.fields import string_field
from kwise.train.data.rows.items import ReadOptions, RowItem
from kwise.train.data.rows.preference_pair import pair_of_conversations
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.transcript import is_hh, parse_hh


def is_hh_pair(row: Mapping[str, Any]) -> bool:
    """Return whether `row` has two transcripts and no prompt."""
    return row.get("prompt") is None and all(
        isinstance(row.get(key), str) and is_hh(row[key]) for key in ("chosen", "rejected")
    )


def read_hh(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the pair of a row."""
    chosen, rejected = (parse_hh(string_field(row, key), key) for key in ("chosen", "rejected"))
    yield pair_of_conversations(row, chosen, rejected)
