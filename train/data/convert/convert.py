"""`kwise data convert`: preference data of any format in, rankings out.

    files/ ──row──▶ formats/ ──item──▶ assemble.py ──ranking──▶ usable.py ──▶ files/output.py

Nothing is lost silently: the report counts what is skipped, with reasons, and every written line
has passed the check of `kwise train`.
"""

import sys
from collections.abc import Iterator

from kwise.train.data.convert.assemble import assemble_rankings
from kwise.train.data.convert.json_line import json_line
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.convert.read_items import add_problem, read_items
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.convert.usable import usable_part
from kwise.train.data.files.output import open_output
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.open_file import display_name
from kwise.train.rankings.schema import parse_ranking


def run(config: ConvertConfig) -> int:
    """Convert the input, print the report on standard error and return 0.

    Raises:
        RankingsError: rows cannot be read and --skip-bad is not given, or there is no ranking.
            Nothing is written then.
        ConfigError: the format is not recognised, or an option does not apply to it.
    """
    report = ConversionReport()
    try:
        with open_output(config.output) as output:
            for line in convert(config, report):
                output.write(line)
            if not report.num_rankings:
                names = ", ".join(map(display_name, config.input))
                raise RankingsError([f"{names}: no rankings"])
    except RankingsError as error:
        raise RankingsError([*error.problems, *report.lines(is_written=False)]) from None
    print(*report.lines(), sep="\n", file=sys.stderr)
    return 0


def convert(config: ConvertConfig, report: ConversionReport) -> Iterator[bytes]:
    """Yield the lines of the output, each with its newline, and fill in `report`.

    Raises:
        RankingsError: up to `MAX_PROBLEMS` bad rows, with one problem each; at the end of the
            input or as soon as there are more.
    """
    items = read_items(config, report)
    for origin, ranked in assemble_rankings(items, config, report):
        usable = usable_part(ranked, report.skipped, keep_tied=config.keep_tied)
        if usable is None:
            continue
        line = json_line(usable)
        try:
            parse_ranking(line, origin=origin, allow_tied=config.keep_tied)
        except RankingsError as error:
            add_problem(error.problems[0], config, report)
            continue
        report.num_rankings += 1
        if ranked.note:
            report.notes[ranked.note] += 1
        yield line
    if report.problems:
        raise RankingsError(report.problems)
