"""The reading of one row by a format, with what all formats have in common.

row ──format──▶ items ──shapes.py──▶ texts as turns ──surroundings.py──▶ nothing lost
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kwise.train.data.rows.items import ReadOptions, ReadRow, RowItem
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.shapes import recognise_shapes
from kwise.train.data.rows.surroundings import read_surroundings, texts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContents:
    """The contents of a row.

    notes: remarks on how it was read, and their counts.
    unread: the paths of keys that were not read, and their counts.
    """

    items: Sequence[RowItem]
    notes: Counter[str]
    unread: Counter[str]


def read_row(read: ReadRow, values: Mapping[str, Any], options: ReadOptions) -> RowContents:
    """Read a row with the function of a format.

    Raises:
        RowProblem: the row cannot be read, or a part that changes its meaning would be lost.
    """
    row = Row(values, Counter())
    row.is_columns = True
    written = list(read(row, options))
    items = [recognise_shapes(item, row, options) for item in written]
    surrounded = read_surroundings(items, row, options, texts_of(written))
    return RowContents(items=surrounded.items, notes=row.notes, unread=surrounded.unread)
