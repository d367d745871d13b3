"""`kwise data validate`: check every row of a file as `kwise train` reads it."""

import sys
from dataclasses import dataclass

from kwise.options import MAX_COUNT, check_bounds, option
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.read import conversion_lines, read_rows_of_rankings
from kwise.train.rankings.errors import MAX_PROBLEMS
from kwise.train.rankings.open_file import display_name
from kwise.train.rankings.problems import Problems


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """Options of `kwise data validate`."""

    file: str = option(help="file of any format that kwise data convert reads; - for stdin")
    allow_tied: bool = option(
        False,
        "accept rankings whose responses are all tied, as kwise train does with --ties or "
        "--objective regression",
    )
    max_problems: int = option(
        MAX_PROBLEMS,
        "number of problems to print; all are counted",
        minimum=1,
        maximum=MAX_COUNT,
    )

    def __post_init__(self) -> None:
        check_bounds(self)


def run(config: ValidateConfig) -> int:
    """Print the number of rankings and return 0.

    Raises:
        RankingsError: a row is bad, or there is no ranking.
        ConfigError: the file is missing.
    """
    report = ConversionReport(problems=Problems(config.max_problems))
    for _ in read_rows_of_rankings(config.file, report, allow_tied=config.allow_tied):
        pass
    for line in conversion_lines(config.file, report):
        print(line, file=sys.stderr)
    print(f"{display_name(config.file)}: {report.num_rankings} rankings, no problems")
    return 0
