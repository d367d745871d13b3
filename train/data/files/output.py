"""The output of a conversion: a file or standard output, which gets the whole output or nothing.

A file is written beside its final path and renamed. The output for standard output waits in a
temporary file (in $TMPDIR), because a program that reads a pipe cannot tell half an output from a
whole one.
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

STDOUT = "-"
"""The path that stands for standard output."""


def check_output(path: str, *, overwrite: bool, flag: str = "--output") -> None:
    """Raise an error if `path` cannot be written; call it before the work begins.

    Raises:
        ConfigError: `path` exists and may not be replaced or is not a file, or its directory does
            not exist.
    """
    if path == STDOUT:
        return
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ConfigError(f"{flag} {path} is not a file")
    if target.exists() and not overwrite:
        raise ConfigError(
            f"{flag} {path} exists; choose another name, or replace it with --overwrite"
        )
    if not target.resolve().parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no directory {target.resolve().parent}")


@contextmanager
def open_output(path: str) -> Iterator[IO[bytes]]:
    """Open `path`, compressed if its name ends in `.gz`, or standard output (`-`), for writing.

    The output appears when the block ends without an exception, and not before.
    """
    if path == STDOUT:
        with tempfile.TemporaryFile() as temporary:
            yield temporary
            temporary.seek(0)
            with ignore_closed_pipe():
                shutil.copyfileobj(temporary, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        return
    target = Path(path).resolve()  # replaces the file behind a symbolic link, not the link
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            if target.name.endswith(".gz"):
                # Without name and time, equal rankings give equal bytes.
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
                    yield compressed  # type: ignore[misc]
            else:
                yield file
        publish_file(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def ignore_closed_pipe() -> Iterator[None]:
    """End silently if the reader of standard output closes it early, as `| head` does.

    The block has to flush what it prints.
    """
    try:
        yield
    except BrokenPipeError:
        # Python flushes again at exit and would report the same error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
