"""Opening of a data file: a path or standard input, compressed with gzip or not."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kwise.train.rankings.errors import RankingsError

STDIN = "-"
"""The path that stands for standard input."""


def display_name(path: str) -> str:
    """Return the name of `path` for messages: "<stdin>" for standard input, else the path."""
    return "<stdin>" if path == STDIN else path


@contextmanager
def open_decompressed(path: str) -> Iterator["io.BufferedReader[Any]"]:
    """Open `path`, or standard input (`-`), and decompress gzip.

    The first two bytes decide whether the content is gzip, so that the name does not matter.

    Raises:
        RankingsError: while reading: the gzip file is damaged or cut short.
        OSError: the file cannot be read.
    """
    # Standard input stays open, so a `with` statement does not fit.
    raw = sys.stdin.buffer if path == STDIN else Path(path).open("rb")  # noqa: SIM115
    try:
        buffered: io.BufferedReader[Any] = (
            raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
        )
        if buffered.peek(2)[:2] == b"\x1f\x8b":
            buffered = io.BufferedReader(gzip.GzipFile(fileobj=buffered))
        yield buffered
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RankingsError([f"{display_name(path)}: not a complete gzip file ({error})"]) from None
    finally:
        if path != STDIN:
            raw.close()
