"""The items of all rows of the input: detects the format, reads each row, collects bad rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.convert.report import UNREADABLE, ConversionReport
from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.formats.resemblance import resemblance, unknown_format
from kwise.train.data.formats.table import FORMATS, FormatName, detect
from kwise.train.data.rows.items import RankedResponses, RowItem, RowProblem
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.open_file import display_name


def read_items(
    config: ConvertConfig, report: ConversionReport, *, as_given: bool = False
) -> Iterator[tuple[str, RowItem]]:
    """Yield ("FILE:ROW", item) for the items of every row; bad rows go to `report.problems`.

    Args:
        as_given: leave rows in kwise's own format to `ranking_of`, which refuses what `kwise data
            convert` would leave out.
    """
    options = config.read_options()
    guesses: dict[str, str] = {}
    for path in config.input:
        for number, row in _rows(path, report):
            report.num_rows += 1
            origin = f"{display_name(path)}:{number}"
            try:
                if isinstance(row, RowProblem):
                    raise row
                if not isinstance(row, dict):
                    raise RowProblem("row", "must be an object")
                if report.format is None:
                    report.format = config.format or _detect(row)
                    config.check_format(report.format)
                if as_given and report.format is FormatName.KWISE:
                    items: list[RowItem] = [RankedResponses(prompt=(), responses=(), row=row)]
                else:
                    items = list(FORMATS[report.format].read(row, options))
                _check_guesses(items, guesses)
            except RowProblem as problem:
                add_problem(f"{origin}: {problem}", origin, config, report)
                continue
            for item in items:
                yield origin, item


def add_problem(problem: str, origin: str, config: ConvertConfig, report: ConversionReport) -> None:
    """Add the problem of a bad row, which is counted as skipped with --skip-bad."""
    report.problems.add(problem, origin=origin)
    if config.skip_bad:
        report.skipped[UNREADABLE] += 1


def _rows(path: str, report: ConversionReport) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file; report the reason why no further one can be read."""
    try:
        yield from read_rows(path)
    except RankingsError as error:
        report.problems.add_end(error)


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


def _detect(row: dict[str, Any]) -> FormatName:
    """Return the format that fits, or else the one whose keys the row has.

    Its reader then says which value is wrong.
    """
    if (detected := detect(row)) is not None:
        return detected
    nearest = resemblance(row)
    if nearest is None or nearest.missing:
        raise RowProblem("row", unknown_format(row))
    return nearest.format
