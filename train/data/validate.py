"""`kwise data validate`: every line of a file of rankings, checked as `kwise train` checks it."""

from dataclasses import dataclass
from pathlib import Path

from kwise.options import check_bounds, option
from kwise.train.data.files import Stored, read_rows, stored_as
from kwise.train.data.formats.table import FormatName, detect
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.open_file import display_name, open_decompressed
from kwise.train.rankings.read import parse_lines
from kwise.train.rankings.schema import Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """Options of `kwise data validate`."""

    file: str = option(help="rankings as JSON Lines, .gz or not; - for stdin")
    allow_tied: bool = option(
        False,
        "a ranking may be one tie throughout, as kwise train takes it with --ties or regression",
    )
    max_problems: int = option(
        MAX_PROBLEMS, "problems that are printed; all are counted", minimum=1
    )

    def __post_init__(self) -> None:
        check_bounds(self)


def run(config: ValidateConfig) -> int:
    """Print what the file has.

    Raises:
        RankingsError: there are problems, there is no ranking, or the file is of another format.
        OSError: the file cannot be read.
    """
    name = display_name(config.file)
    _refuse_others(config.file)
    num_rankings = num_problems = 0
    problems: list[str] = []
    for checked in parse_lines(config.file, allow_tied=config.allow_tied):
        if isinstance(checked, Ranking):
            num_rankings += 1
            continue
        num_problems += 1
        if len(problems) < config.max_problems:
            problems.append(checked)
    if num_problems:
        more = f" (the first {len(problems)} above)" if num_problems > len(problems) else ""
        raise RankingsError(
            [
                *problems,
                f"{name}: {num_problems} of {num_problems + num_rankings} lines are bad{more}",
            ]
        )
    if not num_rankings:
        raise RankingsError([f"{name}: no rankings"])
    print(f"{name}: {num_rankings} rankings, no problems")
    return 0


def _refuse_others(path: str) -> None:
    """Say at once what a file is that `kwise data convert` reads and this does not, instead of every line of it. A file alone: what
    comes through a pipe cannot be read twice."""
    if path == "-" or not Path(path).is_file():
        return
    with open_decompressed(path) as stream:
        stored = stored_as(stream.peek(16))
    found = stored.value if stored is not Stored.LINES else ""
    if not found:
        _, row = next(read_rows(path), (0, None))
        format_name = detect(row) if isinstance(row, dict) else None
        if format_name and format_name is not FormatName.KWISE:
            found = f"of the format {format_name.value}, by its first row"
    if found:
        raise RankingsError([f"{path}: is {found}; kwise data convert makes rankings of it"])
