"""The number of rows of the input, roughly, so that progress can say what is left."""

from collections.abc import Sequence
from pathlib import Path

from kwise.bulk.input.files import InputFile
from kwise.train.data.files.kinds import FileKind, file_kind
from kwise.train.rankings.open_file import STDIN

_SAMPLE_BYTES = 4 << 20


def estimated_rows(files: Sequence[InputFile]) -> int | None:
    """Return about how many rows the files have; None if one of them cannot be estimated.

    Parquet says it. Of a text the first 4 MB are counted.
    """
    total = 0
    for file in files:
        if file.path == STDIN or not file.num_bytes:
            if file.path == STDIN or not Path(file.path).is_file():
                return None
            continue
        num_rows = _rows_of_file(file)
        if num_rows is None:
            return None
        total += num_rows
    return total


def _rows_of_file(file: InputFile) -> int | None:
    with Path(file.path).open("rb") as opened:
        sample = opened.read(_SAMPLE_BYTES)
    if sample.startswith(b"\x1f\x8b"):
        return None
    kind = file_kind(sample[:32])
    if kind is FileKind.PARQUET:
        return _rows_of_parquet(file.path)
    if kind is FileKind.ARROW:
        return None
    if kind is FileKind.ARRAY or not (lines := sample.count(b"\n")):
        return None if len(sample) == _SAMPLE_BYTES or kind is FileKind.ARRAY else 1
    return round(lines * file.num_bytes / len(sample))


def _rows_of_parquet(path: str) -> int | None:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        return None  # reading the file says so
    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (OSError, pyarrow.ArrowException):
        return None
