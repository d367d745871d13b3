"""The items of all rows of the input: detects the format, reads each row, collects bad rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from kwise.errors import ConfigError
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.formats.table import FORMATS, FormatName, detect
from kwise.train.data.rows.items import RankedResponses, RowItem, RowProblem
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.open_file import display_name


def read_items(config: ConvertConfig, report: ConversionReport) -> Iterator[tuple[str, RowItem]]:
    """Yield ("FILE:ROW", item) for the items of every row; bad rows go to `add_problem`."""
    options = config.read_options()
    guesses: dict[str, str] = {}
    for path in config.input:
        for number, row in read_rows(path):
            report.num_rows += 1
            origin = f"{display_name(path)}:{number}"
            try:
                if isinstance(row, RowProblem):
                    raise row
                if not isinstance(row, dict):
                    raise RowProblem("row", "must be an object")
                if report.format is None:
                    report.format = config.format or _detect(origin, row)
                    config.check_format(report.format)
                items = list(FORMATS[report.format].read(row, options))
                _check_guesses(items, guesses)
            except RowProblem as problem:
                add_problem(f"{origin}: {problem}", config, report)
                continue
            for item in items:
                yield origin, item


def add_problem(problem: str, config: ConvertConfig, report: ConversionReport) -> None:
    """Count a bad row as skipped with --skip-bad, else keep its problem for the error.

    Raises:
        RankingsError: there are more than `MAX_PROBLEMS` problems.
    """
    if config.skip_bad:
        report.skipped["row", "cannot be read (--skip-bad)"] += 1
        report.first_unreadable = report.first_unreadable or problem
        return
    if len(report.problems) == MAX_PROBLEMS:
        raise RankingsError(
            [*report.problems, f"stopped after {MAX_PROBLEMS} problems; there are more"]
        )
    report.problems.append(problem)


def _check_guesses(items: Sequence[RowItem], guesses: dict[str, str]) -> None:
    """Refuse a row whose guesses differ from those of the rows before: it would be mixed in."""
    for item in items:
        for name, guess in item.guesses if isinstance(item, RankedResponses) else ():
            previous = guesses.setdefault(name, guess)
            if previous != guess:
                raise RowProblem(
                    "row",
                    f"{name} would be {guess[:40]!a} here, but was {previous[:40]!a} before; "
                    "give the option",
                )


def _detect(origin: str, row: dict[str, Any]) -> FormatName:
    if (detected := detect(row)) is None:
        keys = ", ".join(key[:40] for key in list(row)[:12])
        names = ", ".join(name.value for name in FormatName)
        raise ConfigError(
            f"{origin}: no known format has the keys ({keys}); if it is one, choose it with "
            f"--format {names}"
        )
    return detected
