"""Rankings from a file of any format, for every command that needs rankings.

Rows of other formats are converted on the way as `kwise data convert` does by default. Rows in
kwise's own format are read strictly: what training cannot use is an error.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from kwise.train.data.convert.convert import ConvertedRow, convert
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.formats.table import FORMATS, FormatName
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.open_file import display_name
from kwise.train.rankings.schema import Ranking


def read_rankings(
    path: str | Path,
    *,
    allow_tied: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Ranking]:
    """Return all rankings of a file, or of standard input (`-`).

    Args:
        allow_tied: accept rankings whose responses are all tied. Only objectives that learn from
            ties can use them.
        progress: gets the lines that say what was converted and left out.

    Raises:
        RankingsError: there are bad rows, or there is no ranking.
        ConfigError: the file is missing.
        OSError: the file cannot be read.
    """
    report = ConversionReport()
    rows = read_rows_of_rankings(str(path), report, allow_tied=allow_tied)
    rankings = [row.ranking for row in rows]
    for line in conversion_lines(str(path), report):
        progress(line)
    return rankings


def read_rows_of_rankings(
    path: str, report: ConversionReport, *, allow_tied: bool
) -> Iterator[ConvertedRow]:
    """Yield the rankings of a file, each with its row in kwise's format, and fill in `report`.

    Raises: as `read_rankings`; bad rows at the end of the file.
    """
    config = ConvertConfig(input=(path,), keep_tied=allow_tied)
    try:
        yield from convert(config, report, as_given=True)
    except RankingsError as error:
        raise RankingsError([*error.problems, *_advice(path, report)]) from None
    if not report.num_rankings:
        lines = conversion_lines(path, report)
        raise RankingsError([*lines, f"{display_name(path)}: no rankings"])


def conversion_lines(path: str, report: ConversionReport) -> list[str]:
    """Return what was converted, in one line with what was left out and why, and the notes.

    Empty if all rows were kwise's own.
    """
    name = display_name(path)
    lines = []
    if report.formats.keys() - {FormatName.KWISE} or report.skipped:
        left_out = "; ".join(
            f"{num} x {what}: {reason}" for (what, reason), num in sorted(report.skipped.items())
        )
        lines.append(
            f"{name}: converted from the format {report.format_names()}: {report.num_rows} rows "
            f"read, {report.num_rankings} rankings kept, left out: {left_out or 'nothing'}"
        )
    return lines + [f"{name}: {remark}" for remark in report.remarks()]


def _advice(path: str, report: ConversionReport) -> list[str]:
    """Return the command that helps with rows that cannot be read."""
    name, command = display_name(path), f"kwise data convert {path} --output rankings.jsonl"
    if report.format is FormatName.KWISE or report.problems.ended:
        return []
    if report.format is None and not report.num_unrecognised:
        return []
    if report.format is None:
        return [
            f"{name}: no row has a known format, which kwise data convert --help lists; choose one "
            f"with {command} --format NAME"
        ]
    options = ", ".join(("--skip-bad", "--ignore-columns", *FORMATS[report.format].options))
    return [
        f"{name}: is in the format {report.format.value}; {command} has options for such rows: "
        f"{options}"
    ]
