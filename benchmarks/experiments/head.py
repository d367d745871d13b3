"""A linear reward head on frozen features, trained with the losses of `kwise train`.

A head is a vector w, a reward is w · x, and w minimises the mean loss of the training rankings plus
λ |w|². L-BFGS finds the minimum in a fraction of a second, so the result depends neither on a
learning rate nor on the number of epochs. λ is the one of `_PENALTIES` that orders most pairs of
held-out training prompts as their labels do (three folds); test prompts play no part in it. The
search begins with the largest λ and ends when two smaller ones are worse.

Dimensions: N rankings; K responses of a ranking; D features.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from kwise.benchmarks.experiments.scoring import is_pair, right_pairs
from kwise.train.options.objectives import ObjectiveConfig, objective_of
from kwise.train.step.losses import Labels, ranking_loss

_PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
_NUM_FOLDS = 3
_PATIENCE = 2  # smaller λ that order fewer pairs end the search
_MAX_ITERATIONS = 60
_FREEDOM = 30.0  # a free feature is so many times as large, and its penalty 900 times smaller


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


def train_head(
    groups: Sequence[Labelled], objective: ObjectiveConfig, *, num_free: int = 0
) -> Head:
    """Return the head for rankings, given by their K, with the λ that cross-validation chooses.

    Args:
        groups: the training rankings in random order.
        objective: the loss of `kwise train`.
        num_free: the last features, which λ leaves nearly free.
    """
    search = _Search(objective, num_free)
    learned, held_out = (
        [
            [group.part(_indices(group, fold, of_fold=of_fold)) for group in groups]
            for fold in range(_NUM_FOLDS)
        ]
        for of_fold in (False, True)
    )
    paths = [search.path(fold, _PENALTIES) for fold in learned]
    chosen, most = 0, -1.0
    for index, heads in enumerate(zip(*paths, strict=True)):
        right = sum(
            _num_right(head, group)
            for head, fold in zip(heads, held_out, strict=True)
            for group in fold
        )
        if right > most:
            chosen, most = index, right
        elif index - chosen >= _PATIENCE:
            break
    return next(search.path(groups, _PENALTIES[chosen : chosen + 1]))


def _indices(group: Labelled, fold: int, *, of_fold: bool) -> Tensor:
    in_fold = torch.arange(len(group.ranks)) % _NUM_FOLDS == fold
    return (in_fold if of_fold else ~in_fold).nonzero()[:, 0]


def _num_right(head: Head, group: Labelled) -> float:
    return float(right_pairs(head.rewards(group.states), is_pair(group.ranks)).sum())


class _Search:
    """The search for the minimum of a loss with a penalty."""

    def __init__(self, objective: ObjectiveConfig, num_free: int) -> None:
        loss = ranking_loss(objective)
        self._num_free = num_free
        self._sees_means = objective_of(objective).fixes_zero
        self._losses = vmap(lambda rewards, ranks, scores: loss(rewards, Labels(ranks, scores)))

    def path(self, groups: Sequence[Labelled], penalties: Sequence[float]) -> Iterator[Head]:
        """Yield the head of each λ, each search beginning at the head before."""
        groups = [group for group in groups if len(group.ranks)]
        flat = torch.cat([group.states.flatten(0, 1) for group in groups])
        mean, scale = flat.mean(0), flat.std(0, correction=0).clamp(min=1e-6)
        scale[len(scale) - self._num_free :] /= _FREEDOM
        inputs = [(group.states - mean) / scale for group in groups]
        axes, curvatures = self._principal_axes(inputs)
        weights = torch.zeros(flat.shape[1])
        for penalty in penalties:
            # In these coordinates the loss is about equally curved in all directions.
            lengths = (curvatures + 2 * penalty).sqrt()

            def objective(x: Tensor, lengths: Tensor = lengths, penalty: float = penalty) -> Tensor:
                weights = axes @ (x / lengths)
                return self._loss(inputs, groups, weights) + penalty * weights.square().sum()

            weights = axes @ (_minimum(objective, (axes.T @ weights) * lengths) / lengths)
            yield Head(mean=mean, scale=scale, weights=weights, penalty=penalty)

    def _loss(
        self, inputs: Sequence[Tensor], groups: Sequence[Labelled], weights: Tensor
    ) -> Tensor:
        losses = [
            self._losses(states @ weights, group.ranks, group.scores)
            for states, group in zip(inputs, groups, strict=True)
        ]
        return torch.cat(losses).mean()

    def _principal_axes(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return axes, [D, D], and about how much the loss curves along each of them.

        Most losses depend on differences within rankings alone; regression does not.
        """
        centred = torch.cat(
            [
                (states if self._sees_means else states - states.mean(1, keepdim=True)).flatten(
                    0, 1
                )
                for states in inputs
            ]
        )
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
        return axes, variances.clamp(min=0) * (2 if self._sees_means else 0.5)


def _minimum(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return where L-BFGS finds the minimum."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=_MAX_ITERATIONS,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-4,
        tolerance_change=1e-6,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = function(x)
        value.backward()
        return value

    optimizer.step(closure)
    return x.detach()
