"""Pairs of test prompts that rewards order rightly, counted for each prompt.

Counts are kept by prompt, because the pairs of a prompt depend on each other: intervals draw
prompts again, not pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kwise.benchmarks.experiments.responses import Responses


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The counts of some prompts, in their order: all pairs, and those of nearly equal length.

    Attributes:
        right: pairs in the right order; two equal rewards count as half a pair.
        right_near: the same among pairs whose lengths differ by at most a quarter.
    """

    right: tuple[float, ...]
    right_near: tuple[float, ...]


def is_pair(ranks: Tensor) -> Tensor:
    """Return whether response i is ranked better than j, bool[n, K, K] of int64[n, K]."""
    return ranks[:, :, None] < ranks[:, None, :]


def right_pairs(rewards: Tensor, counted: Tensor) -> Tensor:
    """Return 1 for counted pairs (i, j) in which i has the higher reward, float64[n, K, K].

    Equal rewards count 1/2, all other pairs 0.

    Args:
        rewards: float[n, K].
        counted: bool[n, K, K].
    """
    difference = rewards[:, :, None] - rewards[:, None, :]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()) * counted


def counts_of(rewards: Tensor, responses: Responses, prompts: Tensor) -> Counts:
    """Return the counts of rewards, float[n, K], of the given n prompts."""
    right = right_pairs(rewards, is_pair(responses.ranks[prompts]))
    near = right * responses.is_near()[prompts]
    return Counts(
        right=tuple(right.sum((1, 2)).tolist()), right_near=tuple(near.sum((1, 2)).tolist())
    )


def pairs_of(responses: Responses) -> Counts:
    """Return the number of all pairs of each prompt, and of those of nearly equal length."""
    return counts_of(-responses.ranks.double(), responses, torch.arange(len(responses.ranks)))


def longer_wins(responses: Responses) -> Counts:
    """Return the counts of the rule that the longer response is better."""
    return counts_of(responses.lengths, responses, torch.arange(len(responses.ranks)))
