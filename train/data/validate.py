"""`kwise data validate`: check every line of a file of rankings as `kwise train` checks it."""

from dataclasses import dataclass
from pathlib import Path

from kwise.options import MAX_COUNT, check_bounds, option
from kwise.train.data.files.read_rows import FileKind, file_kind, read_rows
from kwise.train.data.formats.table import FormatName, detect
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.open_file import STDIN, display_name, open_decompressed
from kwise.train.rankings.read import parse_lines
from kwise.train.rankings.schema import Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """Options of `kwise data validate`."""

    file: str = option(help="rankings as JSON Lines, gzipped or not; - for stdin")
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
        RankingsError: a line is bad, there is no ranking, or the file has another format.
        OSError: the file cannot be read.
    """
    name = display_name(config.file)
    _refuse_other_formats(config.file)
    num_rankings = num_problems = 0
    problems: list[str] = []
    for parsed in parse_lines(config.file, allow_tied=config.allow_tied):
        if isinstance(parsed, Ranking):
            num_rankings += 1
            continue
        num_problems += 1
        if len(problems) < config.max_problems:
            problems.append(parsed)
    if num_problems:
        more = f" (the first {len(problems)} above)" if num_problems > len(problems) else ""
        num_lines = num_problems + num_rankings
        problems.append(f"{name}: {num_problems} of {num_lines} lines are bad{more}")
        raise RankingsError(problems)
    if not num_rankings:
        raise RankingsError([f"{name}: no rankings"])
    print(f"{name}: {num_rankings} rankings, no problems")
    return 0


def _refuse_other_formats(path: str) -> None:
    """Raise one RankingsError for a file that only `kwise data convert` reads.

    Otherwise every line of it would be a problem. Pipes are not checked, because they cannot be
    read twice.
    """
    if path == STDIN or not Path(path).is_file():
        return
    with open_decompressed(path) as stream:
        kind = file_kind(stream.peek(16))
    other = kind.value if kind is not FileKind.LINES else ""
    if not other:
        _, row = next(read_rows(path), (0, None))
        format_name = detect(row) if isinstance(row, dict) else None
        if format_name and format_name is not FormatName.KWISE:
            other = f"in the format {format_name.value}, judging by its first row"
    if other:
        raise RankingsError([f"{path}: is {other}; convert it with kwise data convert"])
