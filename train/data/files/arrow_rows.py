"""The rows of a batch of Arrow as values of Python, also where Python has no such value."""

from collections.abc import Iterator
from typing import Any

from kwise.train.data.rows.items import RowProblem


def batch_rows(batch: Any) -> Iterator[Any]:
    """Yield the rows of a record batch or a table.

    A time that is finer or later than Python's types allow is its text in ISO 8601; a duration, or
    a time that has no such text, is the number in the file. A row with a text that is not UTF-8 is
    a `RowProblem`.
    """
    try:
        # Nearly all batches; a value at a time takes much longer.
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row(batch, number) for number in range(batch.num_rows)]
    yield from rows


def _row(batch: Any, number: int) -> Any:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = _value(column[number])
        except UnicodeDecodeError:
            return RowProblem(name, "not UTF-8")
    return row


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        if scalar.type.num_fields:
            return _nested(scalar)
        text = str(scalar.cast("string").as_py())
        if ":" not in text or text.startswith("<"):  # a duration; or beyond Arrow's calendar
            return scalar.value
        return text.replace(" ", "T", 1)


def _nested(scalar: Any) -> Any:
    """Return the value of a list, map or struct of which a part has no value in Python."""
    import pyarrow

    if isinstance(scalar, pyarrow.StructScalar):
        return {field.name: _value(scalar[field.name]) for field in scalar.type}
    items = [_value(item) for item in scalar.values]
    if isinstance(scalar, pyarrow.MapScalar):
        return [tuple(entry.values()) for entry in items]  # as pyarrow returns a map
    return items
