"""The command `kwise score`: the rewards of the responses."""

import argparse
from typing import Any

from kwise.bulk.commands.shell import Report, add_arguments, responses_of, reward_fields
from kwise.bulk.commands.shell import run as run_report
from kwise.bulk.input.row import InputRow
from kwise.comparison import ranks
from kwise.errors import KwiseError
from kwise.types import Reward, ScoredGroup

__all__ = ["add_arguments", "run"]

HEADER = ("rank", "reward", "response")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    return run_report(arguments, Report(fields=_fields, header=HEADER, rows=rows))


def rows(row: InputRow, scored: ScoredGroup) -> list[tuple[str, ...]]:
    """Return one row per response, in order. A response without a reward shows its error."""
    return [
        _row(rank, outcome, response)
        for rank, outcome, response in zip(
            ranks(scored.rewards), scored.rewards, responses_of(row), strict=True
        )
    ]


def _row(rank: int | None, outcome: Reward | KwiseError, response: Any) -> tuple[str, str, str]:
    if isinstance(outcome, KwiseError):
        return ("-", "-", str(outcome))
    std = "" if outcome.std is None else f" ± {outcome.std:.4f}"
    return (str(rank), f"{outcome.value:.4f}{std}", str(response))


def _fields(row: InputRow, scored: ScoredGroup) -> dict[str, Any]:
    return {"rewards": [reward_fields(outcome) for outcome in scored.rewards]}
