"""Where rankings are written: a file that appears when it is whole, or standard output, likewise.

Nothing is shown of an output that fails half-way: a file is written beside its place and renamed, and what goes to standard
output waits in a temporary file (in $TMPDIR), for a program that reads the pipe cannot tell half an output from a whole one.
"""

import gzip
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kwise.errors import ConfigError
from kwise.publish import publish_file


def check_output(path: str, *, overwrite: bool) -> None:
    """Before work begins.

    Raises:
        ConfigError: there is something at `path` that may not be replaced, or that is no file; or no directory to hold it.
    """
    if path == "-":
        return
    place = Path(path)
    if place.exists() and not place.is_file():
        raise ConfigError(f"--output {path} is not a file")
    if place.exists() and not overwrite:
        raise ConfigError(
            f"--output {path} exists; choose another name, or replace it with --overwrite"
        )
    if not place.resolve().parent.is_dir():
        raise ConfigError(f"--output {path}: there is no directory {place.resolve().parent}")


@contextmanager
def open_output(path: str) -> Iterator[IO[bytes]]:
    """Bytes to `path`, compressed where its name ends in `.gz`, or to standard output (`-`); there when the block is left without
    an exception, and not before."""
    if path == "-":
        with tempfile.TemporaryFile() as work:
            yield work
            work.seek(0)
            with reader_may_leave():
                shutil.copyfileobj(work, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        return
    place = Path(path).resolve()  # through a symbolic link: the file is replaced, not the link
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as work:
            if place.name.endswith(".gz"):
                with gzip.GzipFile(
                    filename="", mode="wb", fileobj=work, mtime=0
                ) as packed:  # equal rankings, equal bytes
                    yield packed  # type: ignore[misc]
            else:
                yield work
        publish_file(partial, place)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """What writes to standard output, flush included, ends in silence where the reader has seen enough (`| head`)."""
    try:
        yield
    except BrokenPipeError:
        # Python would flush once more on leaving, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
