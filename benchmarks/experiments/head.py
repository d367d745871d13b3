"""A linear reward head on frozen features, trained with the losses of `kwise train`.

A head is a vector w, a reward is w · x, and w minimises the mean loss of the training rankings plus
λ |w|². L-BFGS finds the minimum in a fraction of a second, so the result depends neither on a
learning rate nor on the number of epochs. λ is the one of `_PENALTIES` that orders most pairs of
held-out training prompts as their labels do (three folds); test prompts play no part in it.

Dimensions: N rankings; K responses of a ranking; D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from kwise.train.options.objectives import ObjectiveConfig
from kwise.train.step.losses import Labels, RankingLoss, ranking_loss

_PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
_NUM_FOLDS = 3
_MAX_ITERATIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """N rankings of the same K, with the labels that a head learns from.

    Attributes:
        states: float32[N, K, D].
        ranks: int64[N, K].
        scores: float32[N, K].
    """

    states: Tensor
    ranks: Tensor
    scores: Tensor

    def part(self, indices: Tensor) -> "Labelled":
        """Return some of the rankings."""
        return Labelled(
            states=self.states[indices], ranks=self.ranks[indices], scores=self.scores[indices]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A trained head: float32[D] that standardise features, its weights, and the chosen λ."""

    mean: Tensor
    scale: Tensor
    weights: Tensor
    penalty: float

    def rewards(self, states: Tensor) -> Tensor:
        """Return the rewards of states, float32[…, D] → float32[…]."""
        return ((states - self.mean) / self.scale) @ self.weights


def train_head(groups: Sequence[Labelled], objective: ObjectiveConfig) -> Head:
    """Return the head for rankings, given by their K, with the λ that cross-validation chooses."""
    loss = ranking_loss(objective)
    right = torch.zeros(len(_PENALTIES))
    for fold in range(_NUM_FOLDS):
        learned = [group.part(_indices(group, fold, held_out=False)) for group in groups]
        judged = [group.part(_indices(group, fold, held_out=True)) for group in groups]
        heads = _path([group for group in learned if len(group.ranks)], loss, _PENALTIES)
        right += torch.tensor([sum(_num_right(head, group) for group in judged) for head in heads])
    chosen = int(right.argmax())
    return _path(groups, loss, _PENALTIES[: chosen + 1])[-1]


def _indices(group: Labelled, fold: int, *, held_out: bool) -> Tensor:
    # The caller's rankings are in random order.
    in_fold = torch.arange(len(group.ranks)) % _NUM_FOLDS == fold
    return (in_fold if held_out else ~in_fold).nonzero()[:, 0]


def _num_right(head: Head, group: Labelled) -> float:
    signs = (group.ranks[:, None, :] - group.ranks[:, :, None]).sign()  # 1 if i is better than j
    rewards = head.rewards(group.states)
    margins = (rewards[:, :, None] - rewards[:, None, :]) * signs
    return float((margins > 0).sum() + 0.5 * ((margins == 0) & (signs != 0)).sum())


def _path(groups: Sequence[Labelled], loss: RankingLoss, penalties: Sequence[float]) -> list[Head]:
    """Return the head of each λ, each search beginning at the head before."""
    flat = torch.cat([group.states.flatten(0, 1) for group in groups])
    mean, scale = flat.mean(0), flat.std(0, correction=0).clamp(min=1e-6)
    inputs = [(group.states - mean) / scale for group in groups]
    num_rankings = sum(len(group.ranks) for group in groups)
    weights = torch.zeros(flat.shape[1], requires_grad=True)
    losses = vmap(lambda rewards, ranks, scores: loss(rewards, Labels(ranks, scores)))

    def objective(penalty: float) -> Tensor:
        total = torch.stack(
            [
                losses(states @ weights, group.ranks, group.scores).sum()
                for states, group in zip(inputs, groups, strict=True)
            ]
        ).sum()
        return total / num_rankings + penalty * weights.square().sum()

    heads = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weights],
            max_iter=_MAX_ITERATIONS,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
        )

        def closure(
            optimizer: torch.optim.Optimizer = optimizer, penalty: float = penalty
        ) -> Tensor:
            optimizer.zero_grad()
            value = objective(penalty)
            value.backward()
            return value

        optimizer.step(closure)
        heads.append(
            Head(mean=mean, scale=scale, weights=weights.detach().clone(), penalty=penalty)
        )
    return heads
