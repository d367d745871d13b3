"""Opening of a data file: a path or standard input, compressed with gzip or not."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kwise.errors import ConfigError
from kwise.train.rankings.errors import UnreadableFile

STDIN = "-"
"""The path that stands for standard input."""


def display_name(path: str) -> str:
    """Return the name of `path` for messages: "<stdin>" for standard input, else the path."""
    return "<stdin>" if path == STDIN else path


def check_input(*paths: str) -> None:
    """Raise an error if a file is missing; call it before work that takes long.

    Raises:
        ConfigError: a path does not exist, or is a directory.
    """
    for path in paths:
        if path == STDIN:
            continue
        target = Path(path)
        if target.is_dir():
            raise ConfigError(f"{path}: Is a directory; give a file{_files_in(target)}")
        if not target.exists():
            raise ConfigError(f"{path}: No such file or directory{_download(path)}")


@contextmanager
def open_decompressed(path: str) -> Iterator["io.BufferedReader[Any]"]:
    """Open `path`, or standard input (`-`), and decompress gzip.

    The first two bytes decide whether the content is gzip, so that the name does not matter.

    Raises:
        ConfigError: the file is missing or must not be read.
        UnreadableFile: while reading: the gzip file is damaged or cut short.
        OSError: the file cannot be read.
    """
    check_input(path)
    try:
        # Standard input stays open, so a `with` statement does not fit.
        raw = (
            sys.stdin.buffer if path == STDIN else Path(path).open("rb")  # noqa: SIM115
        )
    except PermissionError:
        raise ConfigError(f"{path}: Permission denied") from None
    try:
        buffered: io.BufferedReader[Any] = (
            raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
        )
        if buffered.peek(2)[:2] == b"\x1f\x8b":
            buffered = io.BufferedReader(gzip.GzipFile(fileobj=buffered))
        yield buffered
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableFile(display_name(path), f"not a complete gzip file ({error})") from None
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # An error while reading does not name the file.
        raise OSError(error.errno, error.strerror, display_name(path)) from None
    finally:
        if path != STDIN:
            raw.close()


def _files_in(directory: Path) -> str:
    """Return a hint for a directory of data files, or an empty string."""
    if (directory / "state.json").is_file() or (directory / "dataset_dict.json").is_file():
        return (
            "; this one was written by datasets.save_to_disk: "
            "datasets.load_from_disk(...).to_json('rows.jsonl') makes a file"
        )
    patterns = ("*.jsonl", "*.json", "*.parquet", "*.csv", "*.tsv", "*.gz")
    names = sorted(file.name for pattern in patterns for file in directory.glob(pattern))
    return f", such as {names[0]} in it" if names else ""


def _download(path: str) -> str:
    """Return a hint for what may be the name of a data set on the hub, or an empty string."""
    owner, _, name = path.partition("/")
    is_hub_name = owner and name and "/" not in name and not Path(name).suffix
    if not is_hub_name or owner.startswith((".", "~")) or Path(owner).is_dir():
        return ""
    return f"; to download a data set from the hub: hf download --repo-type dataset {path}"
