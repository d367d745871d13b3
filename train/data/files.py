"""Rows of a file, one at a time: JSON Lines, one JSON array, or Parquet; gzipped or not; a path or standard input (`-`).

The kind is told by the content, never by the name, so that a pipe needs no option. Memory is bounded by one row (of a
Parquet file: by one batch of a row group, as it is stored by columns).
"""

import codecs
import gzip
import json
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, BinaryIO

from kwise.errors import ConfigError
from kwise.train.data.formats.items import RowProblem
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.json_value import JsonError, parse_json
from kwise.train.rankings.open_file import display_name, open_decompressed

_CHUNK_BYTES = 1 << 16
_PARQUET_ROWS = 64
_PACKED = {
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}
_HINT = "an object over several lines; JSON Lines have one on each, and an array begins with ["
_SPACES = re.compile(r"[ \t\r\n]*")
_GOES_ON = (
    "",
    *".eE0123456789",
)  # after a number, or "" after it at the end of the text: there may be more of it
_LONGEST_TOKEN = 16  # no literal or escape of JSON is longer: an error so near the end of the text may be but the cut


class Stored(Enum):
    """How the rows of a file are stored."""

    LINES = "JSON Lines"
    ARRAY = "a JSON array"
    PARQUET = "Parquet"


def stored_as(begin: bytes) -> Stored:
    """By the first bytes of the file, unpacked."""
    if begin.startswith(b"PAR1"):
        return Stored.PARQUET
    return (
        Stored.ARRAY
        if begin.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        else Stored.LINES
    )


def read_rows(path: str) -> Iterator[tuple[int, Any]]:
    """(number, row) from 1 on, the number of a JSON Lines row being its line; in place of a row that cannot be read a
    `RowProblem`, and the next one follows.

    Raises:
        RankingsError: from here on no row can be found.
        ConfigError: Parquet without pyarrow, or from standard input.
        OSError: the file cannot be read.
    """
    with open_decompressed(path) as stream:
        begin = stream.peek(16)
        if packed := next((name for magic, name in _PACKED.items() if begin.startswith(magic)), ""):
            raise RankingsError([f"{display_name(path)}: is packed by {packed}; unpack it first"])
        stored = stored_as(begin)
        if stored is Stored.ARRAY:
            yield from _array_rows(stream, display_name(path))
        elif stored is Stored.LINES:
            yield from _line_rows(stream)
        elif path == "-":
            raise ConfigError(
                "Parquet is read from its end: give it as a file, not on standard input"
            )
        elif isinstance(stream.raw, gzip.GzipFile):
            raise RankingsError([f"{path}: is Parquet packed by gzip; unpack it first"])
        else:
            yield from _parquet_rows(path)


def _line_rows(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip():
            yield number, _parsed(content.rstrip())


def _parsed(content: bytes) -> Any:
    try:
        return parse_json(content)
    except JsonError as error:
        return RowProblem("row", f"not JSON: {_HINT}" if content.strip() == b"{" else str(error))


def _array_rows(stream: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    """The elements of one array. The text at hand grows until it has a whole element, twofold each time, so that a long row is
    not parsed again for each chunk of it."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    held, at, number = "", 0, 0

    def lost(problem: str) -> RankingsError:
        return RankingsError([f"{name}:{number + 1}: row: {problem}; no row can be found after it"])

    def more() -> bool:
        nonlocal held, at
        chunk = stream.read(max(_CHUNK_BYTES, len(held) - at))
        try:
            held, at = held[at:] + utf8.decode(chunk, final=not chunk), 0
        except UnicodeDecodeError:
            raise lost("not UTF-8") from None
        return bool(chunk)

    def sign() -> str:
        """The next character that is no space; "" at the end."""
        nonlocal at
        while True:
            at = _SPACES.match(held, at).end()  # type: ignore[union-attr]
            if at < len(held):
                return held[at]
            if not more():
                return ""

    def element() -> Any:
        nonlocal at
        while True:
            try:
                value, end = decoder.raw_decode(held, at)
                if isinstance(value, dict | list | str) or held[end : end + 1] not in _GOES_ON:
                    at = end
                    return value
                problem = "the array does not end"
            except json.JSONDecodeError as error:
                is_cut = (
                    error.msg.startswith("Unterminated string")
                    or error.pos > len(held) - _LONGEST_TOKEN
                )
                problem = f"not JSON: {error.msg}"
                if not is_cut:
                    raise lost(problem) from None
            except (ValueError, RecursionError):
                raise lost(
                    "not JSON that can be read: too deep, or a number of thousands of digits"
                ) from None
            if not more():
                raise lost(problem)

    assert sign() == "[", "the caller has seen it"
    at += 1
    while (following := sign()) != "]":
        if number:
            if following != ",":
                raise lost("',' or ']' expected" if following else "the array does not end")
            at += 1
            sign()
        row = element()
        number += 1
        yield number, row
    at += 1
    if sign():
        raise lost("there is more after the array")


def _parquet_rows(path: str) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path} is Parquet, which needs pyarrow: pip install 'kwise[data]'"
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise RankingsError(
            [f"{path}: row {number + 1}: not Parquet that can be read ({str(error)[:200]})"]
        ) from None
