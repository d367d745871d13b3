"""The items of all rows of the input: detects each row's format, reads it, collects bad rows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kwise.errors import ConfigError
from kwise.train.data.convert.guesses import Guesses
from kwise.train.data.convert.json_line import row_of
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.convert.report import UNREADABLE, ConversionReport
from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.formats.kwise_schema import read_strictly
from kwise.train.data.formats.resemblance import resemblance, unknown_format
from kwise.train.data.formats.table import FORMATS, FormatName, detect
from kwise.train.data.rows.items import RankedResponses, RowItem, RowProblem
from kwise.train.data.rows.read_row import read_row
from kwise.train.rankings.errors import RankingsError, UnreadableFile
from kwise.train.rankings.open_file import display_name


def read_items(
    config: ConvertConfig, report: ConversionReport, *, as_given: bool = False
) -> Iterator[tuple[str, RowItem]]:
    """Yield ("FILE:ROW", item) for the items of every row; bad rows go to `report.problems`.

    Args:
        as_given: leave rows in kwise's own format to `ranking_of`, which refuses what `kwise data
            convert` would leave out; only texts that spell out turns are read as such.
    """
    options = dict.fromkeys(FORMATS, config.read_options())
    # Who writes kwise's own format writes what the responses are.
    options[FormatName.KWISE] = replace(options[FormatName.KWISE], keep_prompt=True)
    guesses = Guesses()
    for path in config.input:
        for number, row in _rows(path, report):
            report.num_rows += 1
            origin = f"{display_name(path)}:{number}"
            try:
                if isinstance(row, RowProblem):
                    raise row
                if not isinstance(row, dict):
                    raise RowProblem("row", "must be an object")
                format_name = config.format or _detect(row, report)
                _check_options(format_name, config, report)
                report.formats[format_name] += 1
                if as_given and format_name is FormatName.KWISE:
                    contents = read_strictly(row)
                else:
                    contents = read_row(FORMATS[format_name].read, row, options[format_name])
            except RowProblem as problem:
                add_problem(f"{origin}: {problem}", origin, config, report)
                continue
            guesses.add(origin, contents.items)
            report.notes.update(contents.notes)
            report.unread.update(contents.unread)
            for item in contents.items:
                if as_given and format_name is FormatName.KWISE:
                    assert isinstance(item, RankedResponses), "a row of kwise's is a ranking"
                    item = replace(item, row=row_of(item))  # nothing more of it is left out
                yield origin, item
    if problems := list(guesses.problems()):
        report.problems.add_end(RankingsError(problems))


def add_problem(problem: str, origin: str, config: ConvertConfig, report: ConversionReport) -> None:
    """Add the problem of a bad row, which is counted as skipped with --skip-bad."""
    report.problems.add(problem, origin=origin)
    if config.skip_bad:
        report.skipped[UNREADABLE] += 1


def _rows(path: str, report: ConversionReport) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file; report the reason why no further one can be read."""
    try:
        yield from read_rows(path)
    except UnreadableFile as error:
        report.problems.add_end(error)


def _check_options(
    format_name: FormatName, config: ConvertConfig, report: ConversionReport
) -> None:
    """Refuse an option that has no effect on the first row's format, or else the odd row."""
    if format_name in report.formats:
        return
    try:
        config.check_format(format_name)
    except ConfigError as error:
        if not report.formats:
            raise
        raise RowProblem("row", str(error)) from None


def _detect(row: dict[str, Any], report: ConversionReport) -> FormatName:
    """Return the format that fits, or else the one whose keys the row has.

    Its reader then says which value is wrong.
    """
    if (detected := detect(row)) is not None:
        return detected
    nearest = resemblance(row)
    if nearest is None or nearest.missing:
        report.num_unrecognised += 1
        raise RowProblem("row", unknown_format(row))
    return nearest.format
