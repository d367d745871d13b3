"""`kwise data stats`: the figures of a file of rankings, and its overlap with another file."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from kwise.errors import ConfigError
from kwise.options import option
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.read import conversion_lines, read_rows_of_rankings
from kwise.train.data.stats.summary import Lengths, Summary, SummaryBuilder
from kwise.train.rankings.open_file import check_input, display_name


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsConfig:
    """Options of `kwise data stats`."""

    file: str = option(help="file of any format that kwise data convert reads; - for stdin")
    against: str | None = option(
        None, "another file of rankings, such as the validation split: count prompts in both"
    )
    json: bool = option(False, "print JSON instead of a table")

    def __post_init__(self) -> None:
        if self.file == self.against == "-":
            raise ConfigError("standard input (-) can be read only once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """Prompts that are in both files, ignoring white space and case, and their rankings."""

    against: str
    num_prompts: int
    num_rankings: int
    num_rankings_against: int


def run(config: StatsConfig) -> int:
    """Print the figures and return 0.

    Raises:
        RankingsError: a row is bad, or there is no ranking.
        ConfigError: a file is missing.
    """
    check_input(config.file, *filter(None, [config.against]))
    builder = _collect(config.file)
    summary = builder.summary()
    leakage = None
    if config.against is not None:
        other = _collect(config.against)
        leakage = _leakage(builder.num_by_prompt_key, other.num_by_prompt_key, config.against)
    if config.json:
        figures = {
            "file": config.file,
            **asdict(summary),
            "leakage": leakage and asdict(leakage),
        }
        print(json.dumps(figures, indent=2))
    else:
        print("\n".join(_table(config.file, summary, leakage)))
    return 0


def _collect(path: str) -> SummaryBuilder:
    builder, report = SummaryBuilder(), ConversionReport()
    for row in read_rows_of_rankings(path, report, allow_tied=True):
        builder.add(row.ranking)
    for line in conversion_lines(path, report):
        print(line, file=sys.stderr)
    return builder


def _leakage(num_here: Counter[int], num_there: Counter[int], against: str) -> Leakage:
    in_both = num_here.keys() & num_there.keys()
    return Leakage(
        against=against,
        num_prompts=len(in_both),
        num_rankings=sum(num_here[key] for key in in_both),
        num_rankings_against=sum(num_there[key] for key in in_both),
    )


def _table(path: str, summary: Summary, leakage: Leakage | None) -> Iterator[str]:
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
        (
            "longer one wins",
            f"{_percent(summary.longer_wins_share)} of pairs of different length",
        ),
        *_agreement_rows(summary),
    ]
    if leakage is not None:
        num_rankings = (
            f"{leakage.num_rankings:,} rankings here, "
            f"{leakage.num_rankings_against:,} in {leakage.against}"
        )
        rows.append(("prompts in both", f"{leakage.num_prompts:,} ({num_rankings})"))
    width = max(len(name) for name, _ in rows)
    yield display_name(path)
    yield from (f"  {name:{width}}  {value}" for name, value in rows)


def _agreement_rows(summary: Summary) -> list[tuple[str, str]]:
    agreement = summary.agreement
    if not agreement.num_ranking_pairs:
        return [("annotators agree", "no prompt has two rankings with two responses in common")]
    tau = "none" if agreement.kendall_tau_b is None else f"{agreement.kendall_tau_b:.3f}"
    return [
        (
            "annotators agree",
            f"{_percent(agreement.agreement)} of {agreement.num_pairs:,} pairs that two rankings "
            "order",
        ),
        (
            "Kendall's tau-b",
            f"{tau}, mean over {agreement.num_ranking_pairs:,} pairs of rankings of "
            f"{agreement.num_prompts:,} prompts",
        ),
    ]


def _characters(lengths: Lengths) -> str:
    return f"median {lengths.median:,}, p95 {lengths.p95:,}, max {lengths.max:,}"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
