"""Measure how well the disagreement of an ensemble's members tells wrong pairs from right ones.

The reward of a pair is its margin, r_better − r_worse. Each member has one; an ensemble has their
mean and their standard deviation. A useful standard deviation is large on the pairs that the mean
orders wrongly, so it is judged as a classifier of these, by the area under the ROC curve (AUROC):
the probability that a wrong pair has a larger one than a right pair has. 0.5 is chance. The
baseline needs no ensemble: the smaller the margin, the less sure.

A constant offset of a member changes none of this.

Dimensions: K responses of a ranking; P pairs of responses with different ranks; M members.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersEvaluation:
    """The agreement of the members of an ensemble with a set of rankings, and with each other.

    Attributes:
        accuracies: the pairwise accuracy of each member.
        std: the mean standard deviation of a pair's margin, over all pairs.
        auroc_of_std: how well the standard deviation of the margin tells wrong pairs from right
            ones; None if all pairs are right, or all wrong.
        auroc_of_margin: the same of the mean margin's size, the smaller the less sure.
        auroc_of_ratio: the same of the mean margin's size divided by the standard deviation.
    """

    accuracies: tuple[float, ...]
    std: float
    auroc_of_std: float | None
    auroc_of_margin: float | None
    auroc_of_ratio: float | None

    def __str__(self) -> str:
        low, high = min(self.accuracies), max(self.accuracies)
        text = f"{len(self.accuracies)} heads, pairwise accuracy {low:.1%} to {high:.1%} each"
        if self.auroc_of_std is None or self.auroc_of_margin is None:
            return text
        return (
            f"{text}; AUROC of wrong pairs {self.auroc_of_std:.3f} by the standard deviation, "
            f"{self.auroc_of_margin:.3f} by a small margin"
        )


def margins_of(rewards_KM: Tensor, ranks_K: Tensor) -> Tensor:
    """Return the margin of each pair by each member, [P, M]; positive if its order is right."""
    better_P, worse_P = (ranks_K[:, None] < ranks_K[None, :]).nonzero(as_tuple=True)
    return rewards_KM[better_P] - rewards_KM[worse_P]


def evaluate_members(margins: Sequence[Tensor]) -> MembersEvaluation:
    """Return the evaluation of the margins of all rankings; there must be at least one pair."""
    margins_PM = torch.cat([*margins]).double()
    mean_P, std_P = margins_PM.mean(1), margins_PM.std(1, correction=0)
    wrong_P = mean_P <= 0
    return MembersEvaluation(
        accuracies=tuple(accuracy(margins_M) for margins_M in margins_PM.unbind(1)),
        std=float(std_P.mean()),
        auroc_of_std=auroc(std_P, wrong_P),
        auroc_of_margin=auroc(-mean_P.abs(), wrong_P),
        auroc_of_ratio=auroc(-sureness(mean_P, std_P), wrong_P),
    )


def sureness(mean_P: Tensor, std_P: Tensor) -> Tensor:
    """Return |mean| / std; infinite if all members agree exactly, 0 if they agree on 0."""
    return torch.where(std_P > 0, mean_P.abs() / std_P, torch.inf).where(mean_P != 0, 0.0)


def accuracy(margins_P: Tensor) -> float:
    """Return the share of margins above 0; a margin of 0 counts one half."""
    return float((margins_P > 0).double().mean() + (margins_P == 0).double().mean() / 2)


def auroc(scores_P: Tensor, is_positive_P: Tensor) -> float | None:
    """Return the probability that a positive has a higher score than a negative; a tie is a half.

    None without positives or without negatives. This is Mann and Whitney's U over the number of
    (positive, negative) pairs.
    """
    positives = int(is_positive_P.sum())
    negatives = len(is_positive_P) - positives
    if not positives or not negatives:
        return None
    _, index_P, counts = torch.unique(scores_P, return_inverse=True, return_counts=True)
    # The mean rank of equal scores, from 1.
    ranks = counts.cumsum(0) - (counts - 1) / 2
    rank_sum = float(ranks[index_P][is_positive_P].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
