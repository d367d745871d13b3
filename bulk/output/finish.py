"""Turns the finished lines of a run into the output: as they are, compressed, or as Parquet.

A run writes lines of JSON, because such a file can be cut after any row and continued after a
crash. A Parquet file or a gzip stream cannot, so they are made of the lines at the end. Equal lines
give equal bytes.
"""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

from kwise.publish import publish_file


def finish_output(partial: Path, target: Path, types: dict[str, str | None]) -> None:
    """Put the output in its place. The name decides its kind: .parquet, .gz, or the lines.

    It can be called again after a crash in any part of it.

    Args:
        partial: the lines; deleted at the end.
        target: the output.
        types: the columns of a Parquet file with their types; see `parquet.py`.
    """
    if not partial.exists():
        return  # an earlier call came as far as this
    write = _WRITERS.get(target.suffix)
    if write is None:
        publish_file(partial, target)
        return
    work = target.with_name(f".{target.name}.tmp")
    try:
        write(partial, work, types)
        publish_file(work, target)
    finally:
        work.unlink(missing_ok=True)
    partial.unlink()


def check_kind(target: Path) -> None:
    """Check that the output can be written as its name asks, before the work begins.

    Raises:
        ConfigError: Parquet needs a package that is missing.
    """
    if target.suffix == ".parquet":
        from kwise.bulk.output.parquet import import_pyarrow

        import_pyarrow(str(target))


def _write_gzip(partial: Path, work: Path, types: dict[str, str | None]) -> None:
    with (
        partial.open("rb") as lines,
        work.open("wb") as file,
        # Without name and time, equal lines give equal bytes.
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed,
    ):
        shutil.copyfileobj(lines, compressed, 1 << 20)


def _write_parquet(partial: Path, work: Path, types: dict[str, str | None]) -> None:
    from kwise.bulk.output.parquet import write_parquet

    write_parquet(partial, work, types)


_WRITERS: dict[str, Callable[[Path, Path, dict[str, str | None]], None]] = {
    ".gz": _write_gzip,
    ".parquet": _write_parquet,
}
