"""The command `kwise rank`: the order of the responses, the best first."""

import argparse
from typing import Any

from kwise.bulk.commands.score import HEADER, rows
from kwise.bulk.commands.shell import Report, add_arguments, reward_fields
from kwise.bulk.commands.shell import run as run_report
from kwise.bulk.input.row import InputRow
from kwise.comparison import ranks
from kwise.types import ScoredGroup

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    return run_report(arguments, Report(fields=_fields, header=HEADER, rows=_sorted_rows))


def _sorted_rows(row: InputRow, scored: ScoredGroup) -> list[tuple[str, ...]]:
    """Return one row per response, the best first. Responses without a rank come last."""
    order = [len(scored.rewards) + 1 if rank is None else rank for rank in ranks(scored.rewards)]
    return [
        row
        for _, row in sorted(
            zip(order, rows(row, scored), strict=True), key=lambda ranked: ranked[0]
        )
    ]


def _fields(row: InputRow, scored: ScoredGroup) -> dict[str, Any]:
    return {
        "ranks": ranks(scored.rewards),
        "rewards": [reward_fields(outcome) for outcome in scored.rewards],
    }
