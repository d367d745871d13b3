"""The score of RewardBench 2's subset Ties, in which several responses are right.

A question has a tied row, in which many responses are right, and a reference row, in which one is.
With the spread of the right rewards of the tied row, s = max - min, and the gap between the lowest
right and the highest wrong reward of each row, g, a question has five numbers
(`process_single_model` in rewardbench/utils.py of https://github.com/allenai/reward-bench):

    tied accuracy        1 if g(tied) > 0
    reference accuracy   1 if g(reference) > 0
    margin               1 if g(tied) > s
    hard margin          1 if min(g(tied), g(reference)) > s
    margin term          tanh(min(g(tied), g(reference)) / s - 1); 0 if both are 0

The score is 0.30, 0.30, 0.20, 0.20 and 0.01 times their means, at most 1.01. A row whose other row
is missing has only its accuracy.
"""

import math
from collections.abc import Mapping

from kwise.evaluation.suites.benchmark import Outcome, Rewards

REFERENCE, TIED = "ref", "tied"
TIES_WEIGHTS = {"tied": 0.30, "reference": 0.30, "margin": 0.20, "hard": 0.20, "term": 0.01}
COMPONENTS = {
    "tied": "tied accuracy",
    "reference": "reference accuracy",
    "margin": "margin",
    "hard": "hard margin",
    "term": "margin term",
}


def ties_outcome(rows: Mapping[str, tuple[Rewards, int]]) -> Outcome:
    """Return the numbers of a question; NaN for those that need a row that is missing.

    Args:
        rows: the rewards, right responses first, and the number of right ones, by REFERENCE and
            TIED.
    """
    outcome = dict.fromkeys(TIES_WEIGHTS, math.nan)
    if REFERENCE in rows:
        reference_gap = _gap(*rows[REFERENCE])
        outcome["reference"] = float(reference_gap > 0)
    if TIED in rows:
        tied_gap = _gap(*rows[TIED])
        outcome["tied"] = float(tied_gap > 0)
    if REFERENCE in rows and TIED in rows:
        rewards, num_right = rows[TIED]
        spread = max(rewards[:num_right]) - min(rewards[:num_right])
        gap = min(tied_gap, reference_gap)
        outcome["margin"] = float(tied_gap > spread)
        outcome["hard"] = float(gap > spread)
        outcome["term"] = _margin_term(gap, spread)
    return outcome


def _gap(rewards: Rewards, num_right: int) -> float:
    """Return the lowest right reward minus the highest wrong one."""
    return min(rewards[:num_right]) - max(rewards[num_right:])


def _margin_term(gap: float, spread: float) -> float:
    if spread == 0:  # numpy's quotient is infinite then, and NaN if both are 0
        return math.copysign(1.0, gap) if gap else 0.0
    return math.tanh(gap / spread - 1)
