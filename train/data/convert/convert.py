"""Preference data of any format in, rankings out.

    files/ ──row──▶ formats/ ──item──▶ assemble.py ──ranking──▶ usable.py ──▶ ranking_of

Nothing is lost silently: the report counts what is skipped, with reasons. `kwise data convert`
writes the rankings; `read.py` gives them to every other command.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kwise.train.data.convert.assemble import assemble_rankings
from kwise.train.data.convert.json_line import json_line, row_of
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.convert.read_items import add_problem, read_items
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.convert.usable import usable_part
from kwise.train.data.files.output import open_output
from kwise.train.data.rows.items import RankedResponses
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.open_file import check_input, display_name
from kwise.train.rankings.schema import Ranking, ranking_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedRow:
    """A ranking, and the row of kwise's schema that has it, with ids and metadata if given."""

    ranking: Ranking
    row: Mapping[str, Any]


def run(config: ConvertConfig) -> int:
    """Convert the input, print the report on standard error and return 0.

    Raises:
        RankingsError: rows cannot be read and --skip-bad is not given, or there is no ranking.
            Nothing is written then.
        ConfigError: a file is missing, or an option does not apply to the format.
    """
    check_input(*config.input)
    report = ConversionReport()
    try:
        with open_output(config.output) as output:
            for converted in convert(config, report):
                output.write(json_line(converted.row))
            if not report.num_rankings:
                raise RankingsError([f"{_names(config)}: no rankings"])
    except RankingsError as error:
        lines = [*error.problems, *report.lines(is_written=False)]
        if report.num_unrecognised:
            lines.append(
                f"{report.num_unrecognised} rows have no known format; --help lists the formats, "
                "and --format NAME chooses one"
            )
        raise RankingsError(lines) from None
    print(*report.lines(), sep="\n", file=sys.stderr)
    return 0


def convert(
    config: ConvertConfig, report: ConversionReport, *, as_given: bool = False
) -> Iterator[ConvertedRow]:
    """Yield the rankings of the input, and fill in `report`.

    Args:
        as_given: do not remove from rows in kwise's own format what training refuses; it is a
            problem of the row.

    Raises:
        RankingsError: at the end of the input: rows cannot be read and --skip-bad is not given, or
            no further row could be found.
    """
    items = read_items(config, report, as_given=as_given)
    for origin, ranked in assemble_rankings(items, config, report):
        usable: RankedResponses | None = ranked
        if not as_given or ranked.row is None:
            usable = usable_part(ranked, report.skipped, keep_tied=config.keep_tied)
        if usable is None:
            continue
        row = row_of(usable)
        try:
            ranking = ranking_of(row, origin=origin, allow_tied=config.keep_tied)
        except RankingsError as error:
            add_problem(error.problems[0], origin, config, report)
            continue
        report.num_rankings += 1
        if ranked.note:
            report.notes[ranked.note] += 1
        yield ConvertedRow(ranking=ranking, row=row)
    if report.problems.ended or (report.problems and not config.skip_bad):
        raise RankingsError(report.problems.lines(_names(config), report.num_rows))


def _names(config: ConvertConfig) -> str:
    return ", ".join(map(display_name, config.input))
