"""Ranks, margins and win probabilities that follow from rewards without a pass of the model."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import combinations
from math import exp, isnan

from kwise.errors import InvalidRequest, KwiseError
from kwise.types import Comparison, Reward


def ranks(rewards: Sequence[Reward | KwiseError]) -> list[int | None]:
    """Return the rank of each response, in the order of `rewards`.

    The largest raw reward has rank 1. If the model has members, the largest value has rank 1,
    because the members' raw rewards may have different scales. Equal rewards share a rank, and the
    next rank counts all of them (1, 2, 2, 4). A response without a reward, or with the reward NaN,
    has no rank: None.
    """
    numbers = [sort_value(r) if isinstance(r, Reward) else None for r in rewards]
    ascending = sorted(number for number in numbers if number is not None)
    return [
        None if number is None else 1 + len(ascending) - bisect_right(ascending, number)
        for number in numbers
    ]


def sort_value(reward: Reward) -> float | None:
    """Return the number by which a reward is ordered; None if it is NaN."""
    number = reward.value if reward.members else reward.raw
    return None if isnan(number) else number


def win_probability(margin: float) -> float:
    """Return sigmoid(margin), the probability that the first response of a pair is preferred.

    This is the model of Bradley and Terry (1952). It does not overflow for any margin.
    """
    if margin >= 0:
        return 1 / (1 + exp(-margin))
    return exp(margin) / (1 + exp(margin))


def check_pair(number: int, first: int, second: int, num_responses: int) -> None:
    """Check that the pair at index `number` consists of indices below `num_responses`.

    Raises:
        InvalidRequest: the pair names a response that does not exist; names the pair.
    """
    if not (0 <= first < num_responses and 0 <= second < num_responses):
        raise InvalidRequest(
            f"pairs[{number}]",
            f"({first}, {second}) names a response that does not exist; there are {num_responses}, "
            f"counted from 0",
        )


def compare_pair(rewards: Sequence[Reward | KwiseError], first: int, second: int) -> Comparison:
    """Return the comparison of the responses `first` and `second`, which must exist."""
    a, b = rewards[first], rewards[second]
    if isinstance(a, KwiseError):
        return Comparison(first=first, second=second, error=a)
    if isinstance(b, KwiseError):
        return Comparison(first=first, second=second, error=b)
    margin = a.raw - b.raw
    return Comparison(
        first=first, second=second, margin=margin, win_probability=win_probability(margin)
    )


def compare(
    rewards: Sequence[Reward | KwiseError], pairs: Sequence[tuple[int, int]] | None = None
) -> list[Comparison]:
    """Return one comparison per pair of indices, in order.

    `pairs` defaults to all C(K,2) pairs: (0,1), (0,2), …, (1,2), …

    Raises:
        InvalidRequest: a pair names a response that does not exist.
    """
    if not pairs:
        pairs = list(combinations(range(len(rewards)), 2))
    for number, (first, second) in enumerate(pairs):
        check_pair(number, first, second, len(rewards))
    return [compare_pair(rewards, first, second) for first, second in pairs]
