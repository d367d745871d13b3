"""The agreement of rewards with rankings: accuracy over pairs, and loss.

The rewards may come from anything that maps conversations to numbers: a checkpoint in memory, a
served artifact, a heuristic.

Dimensions: K responses of a ranking; M members of an ensemble.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kwise.train.rankings.schema import Ranking
from kwise.train.report.members import MembersEvaluation, evaluate_members, margins_of
from kwise.train.report.pairs import pairs_of, rank_gap_name, shares_right
from kwise.train.step.losses import kwise_loss
from kwise.types import Conversation

RewardFunction = Callable[[Sequence[Conversation]], Sequence[float] | Tensor]
"""Conversations → their rewards, in the same order; or those of each member, a tensor [K, M]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Accuracy on some of the pairs: by the size of the ranking, or by the difference of ranks."""

    name: str
    num_pairs: int
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The agreement of rewards with a set of rankings.

    Attributes:
        num_pairs: pairs of responses with different ranks, in all rankings.
        accuracy: the fraction of these pairs in which the better response has the higher reward.
            Equal rewards count one half, so 0.5 is chance.
        loss: the mean of `kwise_loss` over the rankings that have a pair; log 2 = 0.693 if all
            rewards are equal.
        slices: the accuracy on parts of the pairs, by name.
        members: what the members of an ensemble add, whose mean is the reward; None for an ordinary
            reward model.
    """

    num_rankings: int
    num_pairs: int
    accuracy: float
    loss: float
    slices: tuple[Slice, ...] = ()
    members: MembersEvaluation | None = None


def evaluate(rewards: RewardFunction, rankings: Sequence[Ranking]) -> Evaluation:
    """Compare rewards with `rankings`.

    Args:
        rewards: called once for each ranking, with its K conversations.
        rankings: those without a pair are left out.

    Raises:
        ValueError: no ranking has a pair, or `rewards` returned a wrong number of rewards.
    """
    num_right: defaultdict[str, float] = defaultdict(float)
    num_pairs: Counter[str] = Counter()
    losses = []
    margins = []
    for ranking in rankings:
        # float64, so that evaluation adds no rounding of its own.
        rewards_KM = torch.as_tensor(rewards(ranking.conversations()), dtype=torch.float64)
        rewards_KM = rewards_KM[:, None] if rewards_KM.ndim == 1 else rewards_KM
        rewards_K = rewards_KM.mean(1)
        ranks_K = torch.tensor(ranking.ranks)
        if rewards_K.shape != ranks_K.shape:
            raise ValueError(f"{rewards_K.numel()} rewards for {len(ranks_K)} conversations")
        if not ranking.num_pairs():
            continue
        better_P, worse_P = pairs_of(ranking.ranks)
        right_P = shares_right((rewards_K[better_P] - rewards_K[worse_P]).numpy())
        gaps_P = (ranks_K[worse_P] - ranks_K[better_P]).tolist()
        for right, gap in zip(right_P.tolist(), gaps_P, strict=True):
            for name in (_ALL, f"K = {len(ranks_K)}", rank_gap_name(gap)):
                num_right[name] += right
                num_pairs[name] += 1
        losses.append(kwise_loss(rewards_K, ranks_K).item())
        if rewards_KM.shape[1] > 1:
            margins.append(margins_of(rewards_KM, ranks_K))
    if not losses:
        raise ValueError(f"none of {len(rankings)} rankings has a pair to evaluate on")
    accuracies = {name: num_right[name] / count for name, count in num_pairs.items() if count}
    return Evaluation(
        num_rankings=len(rankings),
        num_pairs=num_pairs[_ALL],
        accuracy=accuracies.pop(_ALL),
        loss=sum(losses) / len(losses),
        slices=tuple(
            Slice(name=name, num_pairs=num_pairs[name], accuracy=accuracy)
            for name, accuracy in sorted(accuracies.items())
        ),
        members=evaluate_members(margins) if margins else None,
    )


_ALL = "all"
