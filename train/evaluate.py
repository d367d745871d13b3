"""How well rewards agree with rankings. Knows nothing of models: anything that maps conversations to rewards will do, a
checkpoint in memory as well as a served artifact or a rule of thumb.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kwise.engine.types import Conversation
from kwise.train.loss import kwise_loss
from kwise.train.rankings import Ranking

RewardFunction = Callable[[Sequence[Conversation]], Sequence[float]]
"""As many rewards as conversations, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`accuracy`: the part of all `num_pairs` pairs in which the better ranked response has the higher reward; pairs of
    tied ranks do not count, equal rewards count one half, so 0.5 is chance. `loss`: `kwise_loss`, mean over rankings
    (log 2 = 0.693 where all rewards are equal)."""

    num_rankings: int
    num_pairs: int
    accuracy: float
    loss: float


def evaluate(rewards: RewardFunction, rankings: Sequence[Ranking]) -> Evaluation:
    """Score `rankings`, one call of `rewards` with the K conversations of each.

    Raises:
        ValueError: there is no pair to judge, or `rewards` returned another number of rewards than it got conversations.
    """
    num_right, num_pairs, losses = 0.0, 0, []
    for ranking in rankings:
        # float64: an evaluation adds no rounding of its own to the rewards that it judges.
        rewards_K = torch.tensor(rewards(ranking.conversations()), dtype=torch.float64)
        ranks_K = torch.tensor(ranking.ranks)
        if rewards_K.shape != ranks_K.shape:
            raise ValueError(f"{len(ranks_K)} conversations were given {rewards_K.numel()} rewards")
        is_pair_KK = ranks_K[:, None] < ranks_K[None, :]
        margins = (rewards_K[:, None] - rewards_K[None, :])[is_pair_KK]
        num_right += ((margins > 0).sum() + (margins == 0).sum() / 2).item()
        num_pairs += len(margins)
        losses.append(kwise_loss(rewards_K, ranks_K).item())
    if not num_pairs:
        raise ValueError(f"{len(rankings)} rankings without a pair: there is nothing to evaluate on")
    return Evaluation(
        num_rankings=len(rankings),
        num_pairs=num_pairs,
        accuracy=num_right / num_pairs,
        loss=sum(losses) / len(losses),
    )
