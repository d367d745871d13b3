"""The files of a run: the lines so far, the bad rows, and the record that makes them resumable.

    OUT.partial      the lines; OUT itself appears when it is complete
    OUT.bad.jsonl    the rows that were not scored, if there are any
    OUT.run.json     the record of the run

Lines are only ever appended. A checkpoint first brings them to the disk and then says in the record
how long the files are. After a crash the files are cut to those lengths, and the run goes on with
the row that follows.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import IO

from kwise.bulk.output.finish import finish_output
from kwise.bulk.output.run_record import Counts, RunRecord
from kwise.errors import ConfigError

STDOUT = "-"
# The time between checkpoints, each of which waits for the disk.
_CHECKPOINT_S = 2.0


class RunPaths:
    """Where the files of a run lie."""

    def __init__(self, output: str, bad_rows: str = "", *, has_bad_rows: bool = True) -> None:
        # A file behind a symbolic link is replaced, not the link.
        self.output = Path(output).resolve() if Path(output).is_symlink() else Path(output)
        self.is_stream = output == STDOUT or (self.output.exists() and _is_special(self.output))
        self.partial = self.output.with_name(f"{self.output.name}.partial")
        self.record = self.output.with_name(f"{self.output.name}.run.json")
        self.bad_rows = Path(bad_rows or f"{output}.bad.jsonl")
        self.has_bad_rows = has_bad_rows and (bool(bad_rows) or not self.is_stream)
        self.is_terminal = output == STDOUT and sys.stdout.isatty()

    @property
    def all(self) -> list[Path]:
        """The files that the run writes."""
        files = [] if self.is_stream else [self.output, self.partial, self.record]
        return [*files, self.bad_rows] if self.has_bad_rows else files

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that the run may write its files, before the work begins.

        Raises:
            ConfigError: a file exists, or a directory is missing or cannot be written to.
        """
        if resume and overwrite:
            raise ConfigError("give either --resume or --overwrite, not both")
        if self.is_stream and resume:
            raise ConfigError(f"--resume needs an output that is a file, not {self.output}")
        for path in self.all:
            if path.is_dir():
                raise ConfigError(f"the output {path} is a directory; name a file")
            parent = path.absolute().parent
            if not parent.is_dir():
                raise ConfigError(f"the output {path}: there is no directory {parent}")
            if not os.access(parent, os.W_OK):
                raise ConfigError(f"the output {path}: nothing can be written in {parent}")
        if overwrite or resume:
            return
        if not self.is_stream and self.record.exists() and self.partial.exists():
            raise ConfigError(
                f"{self.partial} is of an unfinished run; --resume goes on with it, --overwrite "
                "begins anew"
            )
        if existing := next((path for path in self.all if path.exists()), None):
            raise ConfigError(f"{existing} exists; choose another name, or give --overwrite")


def _is_special(path: Path) -> bool:
    return not path.is_file() and not path.is_dir()


class RunFiles:
    """The open files of a run. A context manager; leaving it loses nothing that a checkpoint has.

    Args:
        paths: where they lie.
        asked: the record of a run that has not begun.
        resume: continue an unfinished run if there is one.
        types: the columns of a Parquet file with their types; see `parquet.py`.

    Raises:
        ConfigError: the unfinished run is another one, or somebody else writes these files.
    """

    def __init__(
        self, paths: RunPaths, asked: RunRecord, *, resume: bool, types: dict[str, str | None]
    ) -> None:
        self._paths = paths
        self._types = types
        before = RunRecord.read(paths.record) if resume else None
        if before is not None:
            before.check_same(asked, paths.record)
        elif resume and (old := next((path for path in paths.all if path.exists()), None)):
            raise ConfigError(f"{old} exists without the record of a run; --overwrite begins anew")
        self.record = before or asked
        self._saved_s = monotonic()
        self._lines: IO[bytes] | None = None
        self._bad: IO[bytes] | None = None
        if self.record.is_read:
            return
        self._lines = self._locked()
        if before is None:
            # First the record, so that no line is ever there without one.
            self.record.write(paths.record)
            paths.output.unlink(missing_ok=True)
        _cut(self._lines, self.record.output_bytes, paths.partial)
        if self.record.bad_bytes:
            self._open_bad()
        elif paths.has_bad_rows:
            paths.bad_rows.unlink(missing_ok=True)

    def __enter__(self) -> "RunFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._lines, self._bad):
            if file is not None:
                with suppress(OSError):  # what a checkpoint has flushed is what counts
                    file.close()

    def write(self, line: bytes) -> None:
        """Append a line to the output."""
        assert self._lines is not None, "a run that has read all rows writes nothing"
        with _naming(str(self._paths.partial)):
            self._lines.write(line)

    def write_bad(self, line: bytes) -> None:
        """Append a line to the file of bad rows, if the run has one."""
        if not self._paths.has_bad_rows:
            return
        if self._bad is None:
            self._open_bad()
        assert self._bad is not None
        self._bad.write(line)

    def checkpoint(self, counts: Counts) -> None:
        """Save how far the run came, unless that was done a moment ago."""
        if monotonic() - self._saved_s >= _CHECKPOINT_S:
            self._save(counts, is_read=False)

    def end(self, counts: Counts) -> None:
        """Save that all rows of the input are in the output."""
        self._save(counts, is_read=True)

    def _save(self, counts: Counts, *, is_read: bool) -> None:
        """Bring everything to the disk, and say in the record how far the run came."""
        assert self._lines is not None
        lengths = []
        for file, path in ((self._lines, self._paths.partial), (self._bad, self._paths.bad_rows)):
            if file is not None:
                with _naming(str(path)):
                    file.flush()
                    os.fsync(file.fileno())
            lengths.append(0 if file is None else file.tell())
        self.record = self.record.at(counts, *lengths, is_read=is_read)
        self.record.write(self._paths.record)
        self._saved_s = monotonic()

    def finish(self) -> None:
        """Put the output in its place, after the checkpoint that says that all rows are read."""
        if self.record.is_finished:
            return
        finish_output(self._paths.partial, self._paths.output, self._types)
        self.record = self.record.finished()
        self.record.write(self._paths.record)

    def _locked(self) -> IO[bytes]:
        file = self._paths.partial.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConfigError(f"another process writes {self._paths.partial}") from None
        return file

    def _open_bad(self) -> None:
        self._bad = self._paths.bad_rows.open("ab")
        _cut(self._bad, self.record.bad_bytes, self._paths.bad_rows)


class StreamOutput:
    """An output that is not a file: a pipe, a device, a terminal. It cannot be resumed."""

    def __init__(self, paths: RunPaths, record: RunRecord) -> None:
        self.record = record
        is_stdout = str(paths.output) == STDOUT
        self._is_stdout = is_stdout
        self._lines: IO[bytes] = sys.stdout.buffer if is_stdout else paths.output.open("wb")
        self._bad = paths.bad_rows.open("wb") if paths.has_bad_rows else None
        self._name = "<stdout>" if is_stdout else str(paths.output)

    def __enter__(self) -> "StreamOutput":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_stdout:
            with suppress(OSError):  # `checkpoint` has flushed, and raised what there was
                self._lines.close()
        if self._bad is not None:
            self._bad.close()

    def write(self, line: bytes) -> None:
        """Write a line of the output."""
        with _naming(self._name):
            self._lines.write(line)

    def write_bad(self, line: bytes) -> None:
        """Write a line to the file of bad rows, if there is one."""
        if self._bad is not None:
            self._bad.write(line)

    def end(self, counts: Counts) -> None:
        """Let the reader have everything."""
        self.checkpoint(counts)

    def checkpoint(self, counts: Counts) -> None:
        """Let the reader have what was written."""
        with _naming(self._name):
            self._lines.flush()
        self.record = self.record.at(counts, 0, 0, is_read=False)

    def finish(self) -> None:
        """Do nothing; the reader has everything."""


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Add the name of the file to an error of the system, which lacks it while writing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def _cut(file: IO[bytes], num_bytes: int, path: Path) -> None:
    """Cut a file to the length that the record says."""
    size = os.fstat(file.fileno()).st_size
    if size < num_bytes:
        raise ConfigError(
            f"{path} has {size} bytes, and {num_bytes} were written; --overwrite begins anew"
        )
    os.ftruncate(file.fileno(), num_bytes)
    file.seek(0, os.SEEK_END)
