"""The rows of a benchmark from a file, or from a directory as the hub or `datasets` leaves it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from kwise.errors import ConfigError
from kwise.evaluation.suites.benchmark import Benchmark, BenchmarkItem
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.table import BENCHMARKS, recognise
from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.rows.items import RowProblem
from kwise.train.data.rows.row import Row
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.open_file import STDIN, check_input
from kwise.train.rankings.schema import Ranking

_ENDINGS = (".json", ".jsonl", ".parquet", ".arrow", ".csv", ".tsv")
# Files without rows that `datasets` and the hub write beside the data.
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRows:
    """The rows of a benchmark.

    Attributes:
        items: each with its origin, "FILE:ROW".
        unread_files: files of the directory that do not belong to the evaluation.
    """

    benchmark: Benchmark
    items: tuple[tuple[str, BenchmarkItem], ...]
    unread_files: tuple[str, ...]

    def first(self, num: int | None) -> "BenchmarkRows":
        """Return the first `num` rows; all if it is None."""
        return replace(self, items=self.items[:num])

    def remarks(self) -> list[str]:
        """Return what was read, and the files that were not, as lines for people."""
        read = f"{self.benchmark.title}, {len(self.items):,} rows"
        unread = ", ".join(self.unread_files)
        return [read, f"not read, because no score needs them: {unread}"] if unread else [read]

    def rankings(self) -> list[Ranking]:
        """Return each row as a ranking in which right responses are above wrong ones."""
        return [
            Ranking(
                prompt=item.prompt,
                responses=item.responses,
                ranks=tuple(1 + (index >= item.num_right) for index in range(len(item.responses))),
                origin=origin,
            )
            for origin, item in self.items
        ]


def read_benchmark(path: str, name: SuiteName | None = None) -> BenchmarkRows | None:
    """Return the rows of the benchmark in a file or a directory.

    Args:
        name: the benchmark; None to recognise it by the columns of the first row of each file.

    Returns:
        None if no benchmark was named, and the data is a pipe or a file that is not recognised.

    Raises:
        RankingsError: there are bad rows, or there is no row.
        ConfigError: the data is missing, or is a directory that is not recognised.
        OSError: a file cannot be read.
    """
    if name is None and (path == STDIN or Path(path).is_fifo()):
        return None  # what is read of a pipe to recognise it would be missing afterwards
    directory = path if path != STDIN and Path(path).is_dir() else ""
    if not directory:
        check_input(path)
    files = _files(directory) if directory else [path]
    benchmark = BENCHMARKS[name] if name else _recognise(files)
    if benchmark is None:
        if not directory:
            return None
        names = ", ".join(suite.value for suite in SuiteName)
        raise ConfigError(
            f"{path}: Is a directory without a benchmark that kwise recognises; give a file, or "
            f"name the benchmark with --suite: {names}"
        )
    chosen = [file for file in files if benchmark.reads_file(_relative(file, directory))]
    read = chosen if directory and chosen else files
    return BenchmarkRows(
        benchmark=benchmark,
        items=tuple(_items(benchmark, read, directory)),
        unread_files=tuple(str(_relative(file, directory)) for file in files if file not in read),
    )


def _files(directory: str) -> list[str]:
    """Return the data files below `directory`, in the order of their paths."""
    files = sorted(
        str(file)
        for file in Path(directory).rglob("*")
        if file.name.removesuffix(".gz").endswith(_ENDINGS)
        and file.name not in _NOT_DATA
        and not any(part.startswith(".") for part in file.relative_to(directory).parts)
        and file.is_file()
    )
    if not files:
        raise ConfigError(f"{directory}: has no file of the kinds {', '.join(_ENDINGS)}")
    return files


def _relative(file: str, directory: str) -> PurePath:
    return PurePath(file).relative_to(directory) if directory else PurePath(PurePath(file).name)


def _recognise(files: list[str]) -> Benchmark | None:
    """Return the benchmark of the files, whichever of them shows it.

    Raises:
        ConfigError: the files are of several benchmarks.
    """
    found: dict[SuiteName, Benchmark] = {}
    for file in files:
        _, row = next(read_rows(file), (0, None))
        if isinstance(row, dict) and (benchmark := recognise(row)) is not None:
            found[benchmark.name] = benchmark
    if len(found) > 1:
        titles = " and ".join(benchmark.title for benchmark in found.values())
        raise ConfigError(f"the files are of {titles}; evaluate one benchmark at a time")
    return next(iter(found.values()), None)


def _items(
    benchmark: Benchmark, files: list[str], directory: str
) -> Iterator[tuple[str, BenchmarkItem]]:
    problems: list[str] = []
    in_unit: Counter[tuple[str, str, str]] = Counter()
    num_rows = 0
    for file in files:
        relative = _relative(file, directory)
        for number, row in read_rows(file):
            num_rows += 1
            origin = f"{relative}:{number}"
            try:
                item = _item(benchmark, row, relative)
                in_unit[key := (item.subset, item.unit, item.role)] += 1
                if item.unit and in_unit[key] > 1:
                    raise RowProblem("id", f"{item.role}:{item.unit} occurs twice")
            except RowProblem as problem:
                problems.append(f"{origin}: {problem}")
                continue
            if not problems:
                yield origin, item
    if not num_rows:
        raise RankingsError([f"{', '.join(files)}: no rows"])
    if problems:
        more = len(problems) - MAX_PROBLEMS
        rest = [f"and {more} more problems"] if more > 0 else []
        raise RankingsError([*problems[:MAX_PROBLEMS], *rest])


def _item(benchmark: Benchmark, row: Any, file: PurePath) -> BenchmarkItem:
    if isinstance(row, RowProblem):
        raise row
    if not isinstance(row, dict):
        raise RowProblem("row", "must be an object")
    return benchmark.read(Row(row, Counter()), file)
