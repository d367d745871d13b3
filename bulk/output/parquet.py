"""A Parquet file of the lines of a run, one row group in memory at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install

_GROUP_ROWS = 4096
_KEPT = "all lines are in OUTPUT.partial, which is JSON Lines: rename it to keep them"


def import_pyarrow(path: str) -> Any:
    """Import pyarrow with its Parquet module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path} is Parquet, which needs pyarrow: {how_to_install('data')}"
        ) from None
    return pyarrow


def write_parquet(lines: Path, target: Path, types: dict[str, str | None]) -> None:
    """Write a Parquet file of lines of JSON.

    The first reading finds the types of the columns, because a column may be null for long; the
    second one writes.

    Args:
        types: the columns that the file has even without a row, in order, each with its type:
            "float" for float32, "int" for int32, "long" for int64, lists of them, or None for the
            type of the values. A column whose type ends with "?" is in the file only if it is in
            the lines.

    Raises:
        ConfigError: a column has values that do not fit into one type; names it.
    """
    arrow = import_pyarrow(str(target))
    fixed = {name: _type(arrow, text) for name, text in types.items() if text}
    schema = arrow.schema(
        [
            (name, fixed.get(name, arrow.null()))
            for name, text in types.items()
            if not is_optional(text)
        ]
    )
    for rows in _row_groups(lines):
        table = _table(arrow, rows, None, fixed)
        try:
            schema = arrow.unify_schemas([schema, table.schema], promote_options="permissive")
        except arrow.ArrowException as error:
            raise ConfigError(_no_one_type(error)) from None
    try:
        with arrow.parquet.ParquetWriter(target, schema, compression="zstd") as writer:
            for rows in _row_groups(lines):
                writer.write_table(_table(arrow, rows, schema, fixed))
    except arrow.ArrowNotImplementedError as error:  # such as {}, a struct without a field
        raise ConfigError(f"a column: {_no_one_type(error)}") from None


def is_optional(text: str | None) -> bool:
    """Return whether a column of this type is in the file only if it is in the lines."""
    return text is not None and text.endswith("?")


def _row_groups(lines: Path) -> Iterator[list[dict[str, Any]]]:
    with lines.open("rb") as opened:
        rows = []
        for line in opened:
            rows.append(json.loads(line))
            if len(rows) == _GROUP_ROWS:
                yield rows
                rows = []
        if rows:
            yield rows


def _table(arrow: Any, rows: list[dict[str, Any]], schema: Any, fixed: dict[str, Any]) -> Any:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if schema is not None:
        names = schema.names
    columns = []
    for name in names:
        kind = fixed.get(name) if schema is None else schema.field(name).type
        try:
            columns.append(arrow.array([row.get(name) for row in rows], kind))
        except (arrow.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise ConfigError(f"column {name!r}: {_no_one_type(error)}") from None
    try:
        return arrow.table(columns, names=names)
    except UnicodeEncodeError as error:  # half of a surrogate pair in a name
        raise ConfigError(f"Parquet cannot hold the name of a column ({error}); {_KEPT}") from None


def _no_one_type(error: Exception) -> str:
    return f"its values do not fit into a column of Parquet ({str(error)[:200]}); {_KEPT}"


def _type(arrow: Any, text: str) -> Any:
    text = text.removesuffix("?")
    if text.startswith("list<"):
        return arrow.list_(_type(arrow, text[5:-1]))
    return {"int": arrow.int32(), "long": arrow.int64(), "float": arrow.float32()}[text]
