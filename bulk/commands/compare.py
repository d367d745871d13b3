"""The command `kwise compare`: the margin and win probability of each pair of responses."""

import argparse
from typing import Any

from kwise.bulk.commands.shell import (
    Report,
    add_arguments,
    error_fields,
    pairs_of,
    responses_of,
    reward_fields,
)
from kwise.bulk.commands.shell import run as run_report
from kwise.bulk.input.row import InputRow
from kwise.bulk.output.digits import float32_digits
from kwise.comparison import compare
from kwise.types import Comparison, ScoredGroup

__all__ = ["add_arguments", "run"]

_HEADER = ("first", "second", "margin", "P(first)", "responses")
_PREVIEW_CHARACTERS = 20


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    return run_report(
        arguments, Report(fields=_fields, header=_HEADER, rows=_rows, min_responses=2)
    )


def _rows(row: InputRow, scored: ScoredGroup) -> list[tuple[str, ...]]:
    """Return one row per pair. Responses are numbered from 0, as in the JSON."""
    return [_row(row, comparison) for comparison in compare(scored.rewards, pairs_of(row))]


def _row(row: InputRow, comparison: Comparison) -> tuple[str, ...]:
    first, second = str(comparison.first), str(comparison.second)
    if comparison.error is not None:
        return (first, second, "-", "-", str(comparison.error))
    texts = [
        str(responses_of(row)[end])[:_PREVIEW_CHARACTERS]
        for end in (comparison.first, comparison.second)
    ]
    return (
        first,
        second,
        f"{comparison.margin:+.4f}",
        f"{comparison.win_probability:.1%}",
        " / ".join(texts),
    )


def _fields(row: InputRow, scored: ScoredGroup) -> dict[str, Any]:
    comparisons = [
        {
            "first": comparison.first,
            "second": comparison.second,
            "error": error_fields(comparison.error),
        }
        if comparison.error is not None
        else {
            "first": comparison.first,
            "second": comparison.second,
            "margin": float32_digits(comparison.margin),
            "win_probability": float32_digits(comparison.win_probability),
        }
        for comparison in compare(scored.rewards, pairs_of(row))
    ]
    return {
        "comparisons": comparisons,
        "rewards": [reward_fields(outcome) for outcome in scored.rewards],
    }
