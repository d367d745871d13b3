"""Ranks, margins and win probabilities from rewards: arithmetic that costs no pass of the model."""

from collections.abc import Sequence
from itertools import combinations
from math import exp

from kwise.errors import InvalidRequest, KwiseError
from kwise.types import Comparison, Reward


def ranks(rewards: Sequence[Reward | KwiseError]) -> list[int | None]:
    """1 for the largest raw reward; equal rewards share a rank and the next goes on after them (1, 2, 2, 4).

    None in the place of a response that has no reward.
    """
    raw = [reward.raw for reward in rewards if isinstance(reward, Reward)]
    return [
        1 + sum(other > r.raw for other in raw) if isinstance(r, Reward) else None for r in rewards
    ]


def win_probability(margin: float) -> float:
    """σ(margin), the probability that the first is preferred (Bradley and Terry 1952), without overflow."""
    if margin >= 0:
        return 1 / (1 + exp(-margin))
    return exp(margin) / (1 + exp(margin))


def compare(
    rewards: Sequence[Reward | KwiseError], pairs: Sequence[tuple[int, int]] | None = None
) -> list[Comparison]:
    """One comparison per pair of indices, in order; no pairs given means all C(K,2), (0,1), (0,2), …

    Raises:
        InvalidRequest: a pair names a response that is not there.
    """
    checked = pairs or list(combinations(range(len(rewards)), 2))
    comparisons = []
    for number, (first, second) in enumerate(checked):
        if not (0 <= first < len(rewards) and 0 <= second < len(rewards)):
            raise InvalidRequest(
                f"pairs[{number}]", f"({first}, {second}) with {len(rewards)} responses"
            )
        a, b = rewards[first], rewards[second]
        if isinstance(a, Reward) and isinstance(b, Reward):
            margin = a.raw - b.raw
            comparison = Comparison(
                first=first, second=second, margin=margin, win_probability=win_probability(margin)
            )
        else:
            error = a if isinstance(a, KwiseError) else b
            assert isinstance(error, KwiseError)
            comparison = Comparison(first=first, second=second, error=error)
        comparisons.append(comparison)
    return comparisons
