"""The rows of a CSV or TSV file, one in memory at a time, by the standard library's `csv`.

The first line names the columns. An empty cell is null, as in pandas and `datasets`, because a
table cannot tell an empty text from a missing one. Cells are texts; in columns that hold lists or
objects in the formats that kwise reads, they are JSON.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from kwise.train.data.rows.items import RowProblem
from kwise.train.rankings.errors import UnreadableFile
from kwise.train.rankings.json_value import JsonError, parse_json

_DELIMITERS = (",", "\t", ";", "|")
# Columns that hold a list, an object or an integer where a format has them.
_JSON_COLUMNS = frozenset(
    {
        "answers",
        "choice",
        "completions",
        "conversation_a",
        "conversation_b",
        "info",
        "metadata",
        "ranking",
        "responses",
        "summaries",
    }
)
# Columns that hold texts, and in RewardBench 2, which has the columns after them, lists of texts.
_TEXTS_OR_LISTS = ("chosen", "rejected")
_REWARD_BENCH_2 = {"num_correct", "num_incorrect"}
# Columns that hold a list in one format and a text in another.
_JSON_OR_TEXT_COLUMNS = frozenset({"context", "conversation", "messages"})
_PANDAS_HINT = "; a list is not written as JSON by pandas: use to_json(..., lines=True)"


def delimiter_of(header: str) -> str:
    """Return the delimiter of a table: the one that divides its first line into most columns.

    The rows do not count, because a text may have more commas than the header has columns.

    Returns:
        "" if the line has no delimiter, or if two divide it into equally many columns.
    """
    header, _, _ = header.partition("\r")  # `read_table` reports one that ends no line
    num_columns = {
        delimiter: len(next(csv.reader([header], delimiter=delimiter), []))
        for delimiter in _DELIMITERS
    }
    most = max(num_columns.values())
    best = [delimiter for delimiter, num in num_columns.items() if num == most]
    return best[0] if most > 1 and len(best) == 1 else ""


def read_table(
    lines: Iterable[tuple[int, bytes]], delimiter: str, name: str
) -> Iterator[tuple[int, Any]]:
    """Yield (line, row); the line is the one on which the row begins.

    A row with more or fewer cells than the header is a `RowProblem`, and the next row follows.

    Args:
        lines: the lines of the file in UTF-8, with their numbers; the first one is the header.
        name: of the file, for messages.

    Raises:
        UnreadableFile: the header cannot be used, or no further row can be found.
    """
    csv.field_size_limit(sys.maxsize)  # a response may be longer than the default of 128 KiB
    start = end = 0

    def decoded() -> Iterator[str]:
        nonlocal start, end
        for end, line in lines:
            start = start or end
            yield line.decode()

    try:
        reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
        columns = _columns(next(reader), name, end)
        while True:
            start = 0
            try:
                cells = next(reader)
            except StopIteration:
                return
            if cells:
                yield start, _row(columns, cells)
    except UnicodeDecodeError:
        row, reason = end, "not UTF-8; save the file as UTF-8"
    except csv.Error as error:
        row, reason = start, f"not CSV: {_reason(error)}"
    raise UnreadableFile(name, reason, row=row)


def _reason(error: csv.Error) -> str:
    """Return the message of an error of `csv`, in words that do not speak of Python."""
    text = str(error)
    if text == "unexpected end of data":
        return "a quotation mark that opens here is never closed"
    if text.startswith("new-line character seen"):
        return "a carriage return stands outside of quotation marks"
    return text


def _columns(names: list[str], file_name: str, line: int) -> list[str]:
    # pandas writes its index as a column without a name.
    columns = [name.strip() or f"column {number}" for number, name in enumerate(names, start=1)]
    for name in columns:
        if columns.count(name) > 1:
            raise UnreadableFile(
                file_name, f"the header has the column {name[:40]!a} twice", row=line
            )
    return columns


def _row(columns: list[str], cells: list[str]) -> Any:
    if len(cells) != len(columns):
        return RowProblem("row", f"has {len(cells)} cells, but the header has {len(columns)}")
    row: dict[str, Any] = {}
    has_lists = _has_lists(dict(zip(columns, cells, strict=True)))
    if has_lists and not set(columns) >= _REWARD_BENCH_2:
        return RowProblem(
            "chosen",
            "and rejected are lists in a table, or texts that look so; write JSON Lines, where "
            "lists and texts differ",
        )
    for column, cell in zip(columns, cells, strict=True):
        try:
            is_list = has_lists and column in _TEXTS_OR_LISTS
            row[column] = parse_json(cell.encode()) if is_list else _value(column, cell)
        except JsonError as error:
            hint = _PANDAS_HINT if cell.lstrip().startswith("[") else ""
            return RowProblem(column, f"must be JSON in a table: {error}{hint}")
    return row


def _has_lists(row: dict[str, str]) -> bool:
    """Return whether both sides of a pair look like lists of texts."""
    return all(
        row.get(column, "").strip().startswith(('["', "['")) and row[column].strip().endswith("]")
        for column in _TEXTS_OR_LISTS
    )


def _value(column: str, cell: str) -> Any:
    if not cell:
        return None
    if column in _JSON_OR_TEXT_COLUMNS:
        return parse_json(cell.encode()) if cell.lstrip().startswith(("[{", "{")) else cell
    return parse_json(cell.encode()) if column in _JSON_COLUMNS else cell
