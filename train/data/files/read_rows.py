"""The rows of a file, one at a time: JSON Lines, one JSON array, Parquet, Arrow, CSV or TSV.

The file is a path or standard input (`-`), compressed with gzip or not. The content decides its
kind, never the name, so that a pipe needs no option. Memory is bounded by one row, or for Parquet
and Arrow, which store columns, by one batch of rows.
"""

import codecs
import gzip
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, BinaryIO

from kwise.errors import ConfigError
from kwise.train.data.files.arrow import read_arrow
from kwise.train.data.files.json_array import read_array
from kwise.train.data.files.kinds import FileKind, file_kind, unreadable_kind, wrong_extension
from kwise.train.data.files.parquet import read_parquet
from kwise.train.data.files.table import delimiter_of, read_table
from kwise.train.data.rows.items import RowProblem
from kwise.train.rankings.errors import UnreadableFile
from kwise.train.rankings.json_value import JsonError, parse_json
from kwise.train.rankings.open_file import STDIN, display_name, open_decompressed

NumberedLine = tuple[int, bytes]
_MULTILINE = "is JSON over several lines; JSON Lines has one object per line:"


def read_rows(path: str) -> Iterator[tuple[int, Any]]:
    """Yield (number, row), with numbers from 1; in JSON Lines and CSV the number is a line's.

    A row that cannot be read is a `RowProblem` instead, and the next row follows.

    Raises:
        UnreadableFile: no further row can be found, or the file is of another kind.
        ConfigError: the file is missing, or is Parquet or Arrow without pyarrow or from standard
            input.
        OSError: the file cannot be read.
    """
    name = display_name(path)
    with open_decompressed(path) as stream:
        beginning = stream.peek(32)
        if problem := unreadable_kind(beginning):
            raise UnreadableFile(name, problem)
        kind = file_kind(beginning)
        if kind is FileKind.ARRAY:
            yield from read_array(stream, name)
        elif kind is FileKind.LINES:
            yield from _read_json_lines(_numbered_lines(stream), name)
        elif kind is FileKind.TABLE:
            problem = wrong_extension(path, is_gzip=isinstance(stream.raw, gzip.GzipFile))
            yield from _read_table_or_lines(_numbered_lines(stream), name, problem)
        elif path == STDIN:
            raise ConfigError(f"{kind.value} cannot be read from standard input; give it as a file")
        elif isinstance(stream.raw, gzip.GzipFile):
            raise UnreadableFile(path, f"is {kind.value} compressed with gzip; decompress it first")
        else:
            yield from (read_arrow if kind is FileKind.ARROW else read_parquet)(path)


def _numbered_lines(stream: BinaryIO) -> Iterator[NumberedLine]:
    """Yield the lines from the first one with content on, without a byte order mark."""
    for number, line in enumerate(stream, start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip():
            yield number, content
            yield from enumerate(stream, start=number + 1)


def _read_table_or_lines(
    lines: Iterator[NumberedLine], name: str, extension_problem: str
) -> Iterator[tuple[int, Any]]:
    """Read a text that does not begin like JSON.

    It may be JSON Lines all the same, if only its first line is bad.

    extension_problem: the error if the content is no text of rows; "" if the extension allows any.
    """
    first = list(islice(lines, 2))
    if extension_problem and not _is_text(first[0][1]):
        raise UnreadableFile(name, extension_problem)
    lines = chain(first, lines)
    values = [_parse_line(line) for _, line in first]
    if not isinstance(values[0], RowProblem) or isinstance(values[-1], dict):
        yield from _read_json_lines(lines, name)
    elif delimiter := delimiter_of(first[0][1].decode("utf-8", "replace")):
        yield from read_table(lines, delimiter, name)
    elif extension_problem:
        raise UnreadableFile(name, extension_problem)
    else:
        raise UnreadableFile(
            name,
            "is not JSON Lines, a JSON array, Parquet, Arrow, CSV or TSV: its first line is not "
            "JSON, and no one delimiter (, tab ; |) divides it into columns",
        )


def _is_text(line: bytes) -> bool:
    try:
        return "\0" not in line.decode()
    except UnicodeDecodeError:
        return False


def _read_json_lines(lines: Iterable[NumberedLine], name: str) -> Iterator[tuple[int, Any]]:
    cut: tuple[int, RowProblem] | None = None  # the first line, if an object may go on after it
    is_first = True
    for number, line in lines:
        content = line.strip()
        if not content:
            continue
        if cut is not None:
            if not content.startswith(b"{"):
                raise UnreadableFile(name, f"{_MULTILINE} jq -c . {name} > rows.jsonl")
            yield cut
            cut = None
        row = _parse_line(content)
        if is_first and isinstance(row, RowProblem) and content.endswith((b"{", b"[", b",")):
            cut = number, row
        else:
            yield number, row
        is_first = False
    if cut is not None:
        yield cut


def _parse_line(content: bytes) -> Any:
    try:
        return parse_json(content)
    except JsonError as error:
        return RowProblem("row", str(error))
