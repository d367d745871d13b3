"""`kwise data stats`: what is in a file of rankings, and what of it is in another."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from kwise.errors import ConfigError
from kwise.options import option
from kwise.train.data.summary import Gatherer, Lengths, Summary
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.open_file import display_name
from kwise.train.rankings.read import parse_lines
from kwise.train.rankings.schema import Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsConfig:
    """Options of `kwise data stats`."""

    file: str = option(help="rankings as JSON Lines, .gz or not; - for stdin")
    against: str | None = option(
        None, "another file of rankings, as a validation split: which prompts are in both"
    )
    json: bool = option(False, "JSON instead of a table")

    def __post_init__(self) -> None:
        if self.file == self.against == "-":
            raise ConfigError("standard input (-) can be read once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """Prompts in both files, white space and case aside, and the rankings that have them."""

    against: str
    num_prompts: int
    num_rankings: int
    num_rankings_against: int


def run(config: StatsConfig) -> int:
    """Print the figures.

    Raises:
        RankingsError: a line is no ranking.
        OSError: a file cannot be read.
    """
    gatherer = _gathered(config.file)
    summary = gatherer.summary()
    leakage = None
    if config.against is not None:
        leakage = _leakage(
            gatherer.num_by_prompt_key, _gathered(config.against).num_by_prompt_key, config.against
        )
    if config.json:
        print(
            json.dumps(
                {"file": config.file, **asdict(summary), "leakage": leakage and asdict(leakage)},
                indent=2,
            )
        )
    else:
        print("\n".join(_table(config.file, summary, leakage)))
    return 0


def _gathered(path: str) -> Gatherer:
    gatherer, num_rankings = Gatherer(), 0
    problems: list[str] = []
    for checked in parse_lines(path, allow_tied=True):
        if isinstance(checked, Ranking):
            gatherer.add(checked)
            num_rankings += 1
        else:
            problems.append(checked)
            if len(problems) == MAX_PROBLEMS:
                break
    if problems:
        raise RankingsError([*problems, f"{display_name(path)}: see kwise data validate"])
    if not num_rankings:
        raise RankingsError([f"{display_name(path)}: no rankings"])
    return gatherer


def _leakage(here: Counter[int], there: Counter[int], against: str) -> Leakage:
    both = here.keys() & there.keys()
    return Leakage(
        against=against,
        num_prompts=len(both),
        num_rankings=sum(here[key] for key in both),
        num_rankings_against=sum(there[key] for key in both),
    )


def _table(path: str, summary: Summary, leakage: Leakage | None) -> Iterator[str]:
    agreement = summary.agreement
    rows = [
        ("rankings", f"{summary.num_rankings:,}"),
        ("distinct prompts", f"{summary.num_prompts:,}"),
        ("responses", f"{summary.num_responses:,}"),
        ("pairs", f"{summary.num_pairs:,}"),
        ("rankings by K", ", ".join(f"{k}: {num:,}" for k, num in summary.num_by_k.items())),
        ("pairs tied", _percent(summary.tied_pair_share)),
        ("rankings all tied", f"{summary.num_all_tied:,}"),
        ("prompt, characters", _characters(summary.prompt_characters)),
        ("response, characters", _characters(summary.response_characters)),
        ("repeated rankings", f"{summary.num_repeated_rankings:,}"),
        (
            "repeated responses",
            f"{summary.num_repeated_responses:,} (same text as another of the ranking)",
        ),
        ("longer one wins", f"{_percent(summary.longer_wins_share)} of pairs of different length"),
    ]
    if agreement.num_ranking_pairs:
        tau = "none" if agreement.kendall_tau_b is None else f"{agreement.kendall_tau_b:.3f}"
        rows += [
            (
                "annotators agree",
                f"{_percent(agreement.agreement)} of {agreement.num_pairs:,} pairs that two rankings order",
            ),
            (
                "Kendall's tau-b",
                f"{tau}, mean of {agreement.num_ranking_pairs:,} x two rankings of {agreement.num_prompts:,} prompts",
            ),
        ]
    else:
        rows.append(("annotators agree", "no prompt has two rankings with two responses in common"))
    if leakage is not None:
        places = f"{leakage.num_rankings:,} rankings here, {leakage.num_rankings_against:,} in {leakage.against}"
        rows.append(("prompts in both", f"{leakage.num_prompts:,} ({places})"))
    width = max(len(name) for name, _ in rows)
    yield display_name(path)
    yield from (f"  {name:{width}}  {value}" for name, value in rows)


def _characters(lengths: Lengths) -> str:
    return f"median {lengths.median:,}, p95 {lengths.p95:,}, max {lengths.max:,}"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
