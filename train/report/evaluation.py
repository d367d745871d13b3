"""How well rewards agree with rankings. Knows nothing of models: anything that maps conversations to rewards will do, a
checkpoint in memory as well as a served artifact or a rule of thumb.

Dimensions: K responses of a ranking.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kwise.train.rankings.schema import Ranking
from kwise.train.step.losses import kwise_loss
from kwise.types import Conversation

RewardFunction = Callable[[Sequence[Conversation]], Sequence[float]]
"""As many rewards as conversations, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Accuracy on a part of the pairs: those of rankings with K responses, or those whose ranks are so far apart."""

    name: str
    num_pairs: int
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`accuracy`: the part of all `num_pairs` pairs in which the better ranked response has the higher reward; pairs of
    tied ranks do not count, equal rewards count one half, so 0.5 is chance. `loss`: `kwise_loss`, mean over the rankings that
    have a pair (log 2 = 0.693 where all rewards are equal)."""

    num_rankings: int
    num_pairs: int
    accuracy: float
    loss: float
    slices: tuple[Slice, ...] = ()


def evaluate(rewards: RewardFunction, rankings: Sequence[Ranking]) -> Evaluation:
    """Score `rankings`, one call of `rewards` with the K conversations of each.

    Raises:
        ValueError: there is no pair to judge, or `rewards` returned another number of rewards than it got conversations.
    """
    num_right: defaultdict[str, float] = defaultdict(float)
    num_pairs: Counter[str] = Counter()
    losses = []
    for ranking in rankings:
        # float64: an evaluation adds no rounding of its own to the rewards that it judges.
        rewards_K = torch.tensor(rewards(ranking.conversations()), dtype=torch.float64)
        ranks_K = torch.tensor(ranking.ranks)
        if rewards_K.shape != ranks_K.shape:
            raise ValueError(f"{len(ranks_K)} conversations were given {rewards_K.numel()} rewards")
        if not ranking.num_pairs():
            continue
        margins_KK = rewards_K[:, None] - rewards_K[None, :]
        right_KK = (margins_KK > 0).double() + (margins_KK == 0).double() / 2
        for name, is_pair_KK in _slices(ranks_K):
            num_right[name] += float(right_KK[is_pair_KK].sum())
            num_pairs[name] += int(is_pair_KK.sum())
        losses.append(kwise_loss(rewards_K, ranks_K).item())
    if not losses:
        raise ValueError(
            f"{len(rankings)} rankings without a pair: there is nothing to evaluate on"
        )
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
    )


_ALL = "all"


def _slices(ranks_K: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, bool[K, K]: which (better, worse) belong to it); neighbouring ranks are the hard pairs, distant ones the easy."""
    gaps_KK = ranks_K[None, :] - ranks_K[:, None]
    yield _ALL, gaps_KK > 0
    yield f"K = {len(ranks_K)}", gaps_KK > 0
    yield "ranks 1 apart", gaps_KK == 1
    yield "ranks 2 apart", gaps_KK == 2
    yield "ranks 3 or more apart", gaps_KK >= 3
