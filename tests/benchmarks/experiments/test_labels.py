"""Simulated annotators: bias, scale and drift change scores, and no order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kwise.benchmarks.experiments.annotators import Disagreement, label, standardised
from kwise.benchmarks.experiments.inputs import ranks_of

STRENGTH = st.floats(0, 4)


@given(bias=STRENGTH, scale=st.floats(0, 2), drift=STRENGTH, seed=st.integers(0, 1000))
def test_without_noise_every_annotator_gives_the_true_order(
    bias: float, scale: float, drift: float, seed: int
) -> None:
    quality = torch.randperm(40, generator=torch.Generator().manual_seed(seed)).view(8, 5).float()
    disagreement = Disagreement(bias=bias, scale=scale, drift=drift)
    labels = label(quality, disagreement, num_annotators=3, seed=seed)
    assert torch.equal(ranks_of(labels.impressions), ranks_of(quality))
    points = labels.seven_points()
    assert points.min() >= 1 and points.max() <= 7 and torch.equal(points, points.round())


def test_the_same_seed_gives_the_same_labels_and_noise_changes_orders() -> None:
    quality = torch.arange(90.0).view(10, 9) / 10
    first, again = (label(quality, Disagreement(noise=1), 2, seed=3) for _ in range(2))
    assert torch.equal(first.impressions, again.impressions)
    assert not torch.equal(ranks_of(first.impressions), ranks_of(quality))


def test_ranks_begin_at_one_and_are_equal_for_ties() -> None:
    assert ranks_of(torch.tensor([[0.5, 2.0, 0.5, -1.0]])).tolist() == [[2, 1, 2, 4]]


def test_standardised_scores_of_each_annotator_have_mean_0_and_deviation_1() -> None:
    scores = torch.tensor([[1.0, 2.0], [5.0, 7.0], [3.0, 4.0]])
    annotators = torch.tensor([0, 1, 0])
    result = standardised(scores, annotators)
    for annotator in (0, 1):
        own = result[annotators == annotator]
        torch.testing.assert_close(own.mean(), torch.tensor(0.0))
        torch.testing.assert_close(own.std(correction=0), torch.tensor(1.0))
