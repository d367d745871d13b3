"""A head on frozen features minimises the loss of `kwise train`."""

import pytest
import torch
from torch import Tensor

from kwise.benchmarks.experiments.head import Head, Labelled, train_head
from kwise.benchmarks.experiments.inputs import ranks_of
from kwise.benchmarks.experiments.studies.losses import MIXED_VARIANTS, TIE_VARIANTS, VARIANTS
from kwise.train.options.objectives import ObjectiveConfig, ObjectiveName
from kwise.train.step.losses import Labels, ranking_loss

CONVEX = {
    name: objective
    for name, objective in {**VARIANTS, **TIE_VARIANTS, **MIXED_VARIANTS}.items()
    if objective.objective is not ObjectiveName.SIGMOID  # its minimum may be a local one
}


def rankings(num_rankings: int, K: int, seed: int) -> Labelled:
    """Return rankings whose quality is a direction of the features, with noise."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(num_rankings, K, 6, generator=random)
    quality = states @ torch.tensor([2.0, -1.0, 0.5, 0.0, 0.0, 0.0])
    quality += torch.randn(num_rankings, K, generator=random)
    scores = (quality - quality.mean()) / quality.std()
    return Labelled(states=states, ranks=ranks_of(quality.round()), scores=scores)


def penalised(
    head: Head, weights: Tensor, groups: list[Labelled], objective: ObjectiveConfig
) -> Tensor:
    """Return what `train_head` minimises, with a loop over the rankings."""
    loss = ranking_loss(objective)
    losses = [
        loss(((states - head.mean) / head.scale) @ weights, Labels(ranks, scores))
        for group in groups
        for states, ranks, scores in zip(group.states, group.ranks, group.scores, strict=True)
    ]
    return torch.stack(losses).mean() + head.penalty * weights.square().sum()


@pytest.mark.parametrize("name", CONVEX)
def test_the_weights_are_at_the_minimum_of_the_loss_of_training(name: str) -> None:
    groups = [rankings(12, 5, seed=0), rankings(12, 4, seed=1)]
    head = train_head(groups, CONVEX[name])
    weights = head.weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalised(head, weights, groups, CONVEX[name]), [weights])
    assert gradient.abs().max() < 1e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_every_loss_learns_the_order_of_new_rankings(name: str) -> None:
    head = train_head([rankings(60, 6, seed=0)], VARIANTS[name])
    new = rankings(60, 6, seed=2)
    rewards = head.rewards(new.states)
    signs = (new.scores[:, :, None] - new.scores[:, None, :]).sign()
    right = ((rewards[:, :, None] - rewards[:, None, :]) * signs > 0).sum() / (signs != 0).sum()
    assert right > 0.75


def test_labels_without_information_get_the_strongest_penalty_or_little_weight() -> None:
    group = rankings(40, 5, seed=3)
    shuffled = torch.rand(group.ranks.shape, generator=torch.Generator().manual_seed(4))
    noise = Labelled(states=group.states, ranks=ranks_of(shuffled), scores=shuffled)
    informed = train_head([group], ObjectiveConfig()).weights.norm()
    assert train_head([noise], ObjectiveConfig()).weights.norm() < informed / 2
