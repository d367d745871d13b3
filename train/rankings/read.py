"""The reader of rankings: JSON Lines, one ranking per line, one line in memory at a time."""

from collections.abc import Iterator
from pathlib import Path

from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.open_file import display_name, open_decompressed
from kwise.train.rankings.schema import Ranking, parse_ranking


def read_rankings(path: str | Path, *, allow_tied: bool = False) -> list[Ranking]:
    """Return all rankings of a JSON Lines file, gzipped or not, or of standard input (`-`).

    Blank lines are skipped.

    allow_tied: accept rankings whose responses are all tied. Only objectives that learn from
        ties can use them.

    Raises:
        RankingsError: there are bad lines, of which the first `MAX_PROBLEMS` are named with one
            problem each, or there is no ranking.
        OSError: the file cannot be read.
    """
    name = display_name(str(path))
    rankings: list[Ranking] = []
    problems: list[str] = []
    try:
        for parsed in parse_lines(str(path), allow_tied=allow_tied):
            if isinstance(parsed, Ranking):
                rankings.append(parsed)
            elif len(problems) == MAX_PROBLEMS:
                problems.append(f"{name}: stopped after {MAX_PROBLEMS} problems; there are more")
                break
            else:
                problems.append(parsed)
    except RankingsError as error:
        problems += error.problems
    if not rankings and not problems:
        problems.append(f"{name}: no rankings")
    if problems:
        raise RankingsError(problems)
    return rankings


def parse_lines(path: str, *, allow_tied: bool) -> Iterator[Ranking | str]:
    """Yield for each line its ranking, or its problem as "FILE:LINE: field: problem".

    Raises:
        RankingsError: the gzip file is damaged or cut short.
        OSError: the file cannot be read.
    """
    name = display_name(path)
    with open_decompressed(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield parse_ranking(line, origin=f"{name}:{number}", allow_tied=allow_tied)
            except RankingsError as error:
                yield error.problems[0]
