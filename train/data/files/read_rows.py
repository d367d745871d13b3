"""The rows of a file, one at a time: JSON Lines, one JSON array or Parquet.

The file is a path or standard input (`-`), compressed with gzip or not. The content decides its
kind, never the name, so that a pipe needs no option. Memory is bounded by one row, or for Parquet,
which stores columns, by one batch of a row group.
"""

import codecs
import gzip
from collections.abc import Iterator
from enum import Enum
from typing import Any, BinaryIO

from kwise.errors import ConfigError
from kwise.train.data.files.json_array import read_array
from kwise.train.data.files.parquet import read_parquet
from kwise.train.data.rows.items import RowProblem
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.json_value import JsonError, parse_json
from kwise.train.rankings.open_file import STDIN, display_name, open_decompressed

_OTHER_COMPRESSIONS = {
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}
_MULTILINE_HINT = (
    "an object over several lines; JSON Lines has one object per line, and an array begins with ["
)


class FileKind(Enum):
    """The way in which a file stores its rows."""

    LINES = "JSON Lines"
    ARRAY = "a JSON array"
    PARQUET = "Parquet"


def file_kind(beginning: bytes) -> FileKind:
    """Return the kind of a file from its first bytes, decompressed."""
    if beginning.startswith(b"PAR1"):
        return FileKind.PARQUET
    is_array = beginning.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    return FileKind.ARRAY if is_array else FileKind.LINES


def read_rows(path: str) -> Iterator[tuple[int, Any]]:
    """Yield (number, row), with numbers from 1; in JSON Lines the number is that of the line.

    A row that cannot be read is a `RowProblem` instead, and the next row follows.

    Raises:
        RankingsError: no further row can be found.
        ConfigError: Parquet without pyarrow or from standard input.
        OSError: the file cannot be read.
    """
    with open_decompressed(path) as stream:
        beginning = stream.peek(16)
        for magic, name in _OTHER_COMPRESSIONS.items():
            if beginning.startswith(magic):
                raise RankingsError(
                    [f"{display_name(path)}: is compressed with {name}; decompress it first"]
                )
        kind = file_kind(beginning)
        if kind is FileKind.ARRAY:
            yield from read_array(stream, display_name(path))
        elif kind is FileKind.LINES:
            yield from _read_lines(stream)
        elif path == STDIN:
            raise ConfigError("Parquet cannot be read from standard input; give it as a file")
        elif isinstance(stream.raw, gzip.GzipFile):
            raise RankingsError([f"{path}: is Parquet compressed with gzip; decompress it first"])
        else:
            yield from read_parquet(path)


def _read_lines(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip():
            yield number, _parse_line(content.rstrip())


def _parse_line(content: bytes) -> Any:
    try:
        return parse_json(content)
    except JsonError as error:
        is_multiline = content.strip() == b"{"
        return RowProblem("row", f"not JSON: {_MULTILINE_HINT}" if is_multiline else str(error))
