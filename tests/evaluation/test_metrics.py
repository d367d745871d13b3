"""Each figure equals a naive computation by its definition."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, pairwise, permutations
from operator import add
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kwise.evaluation.figures import figures_of
from kwise.evaluation.metrics.best_of_n import expected_quality
from kwise.evaluation.metrics.calibration import (
    expected_calibration_error,
    fitted_temperature,
    negative_log_likelihood,
    reliability_bins,
)
from kwise.evaluation.metrics.labelled import labels_of, percentiles_of
from kwise.evaluation.metrics.rank_correlation import kendall_tau, ndcg
from kwise.evaluation.result import EvaluatedRanking
from tests.evaluation.rankings import QUICK, drawn_rankings, drawn_sets, ranking

margins = st.lists(st.floats(-6, 6), min_size=1, max_size=30).map(np.asarray)


def pairs(one: EvaluatedRanking) -> list[tuple[int, int]]:
    """Return the index of the better and of the worse response of each pair."""
    both = permutations(range(len(one.ranks)), 2)
    return [(i, j) for i, j in both if one.ranks[i] < one.ranks[j]]


def half_point(difference: float) -> float:
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def orders(values: Sequence[float]) -> list[tuple[int, ...]]:
    """Return every order of the indices in which the values do not rise."""
    return [
        order
        for order in permutations(range(len(values)))
        if all(values[a] >= values[b] for a, b in pairwise(order))
    ]


@given(drawn_sets)
def test_accuracies_are_shares_of_pairs_and_parts_add_up(rankings: list[EvaluatedRanking]) -> None:
    figures = figures_of(rankings, QUICK)
    right = [half_point(r.rewards[i] - r.rewards[j]) for r in rankings for i, j in pairs(r)]
    longer = [half_point(r.lengths[i] - r.lengths[j]) for r in rankings for i, j in pairs(r)]
    assert figures.num_pairs == figures.accuracy.num_pairs == len(right)
    assert figures.accuracy.accuracy.value == pytest.approx(mean(right))
    assert figures.accuracy.longer_wins == pytest.approx(mean(longer))
    for parts in (figures.by_rank_gap, figures.by_length, figures.by_size):
        assert sum(part.num_pairs for part in parts) == len(right)
        total = sum(part.num_pairs * part.accuracy.value for part in parts)
        assert total == pytest.approx(sum(right))


def test_lengths_are_similar_up_to_a_quarter() -> None:
    one = ranking([4, 3, 2, 1], [1, 2, 2, 2], lengths=[100, 80, 79, 126])
    parts = {part.name: part for part in figures_of([one], QUICK).by_length}
    assert {name: part.num_pairs for name, part in parts.items()} == {
        "better is longer": 1,  # 100 and 79
        "similar lengths": 1,  # 100 and 80
        "better is shorter": 1,  # 100 and 126
    }
    assert [parts[name].longer_wins for name in parts] == [1.0, 1.0, 0.0]


@given(drawn_rankings())
def test_kendall_counts_concordant_pairs(one: EvaluatedRanking) -> None:
    labels, both = labels_of(one), list(combinations(range(len(one.ranks)), 2))
    signs = [
        (np.sign(one.rewards[i] - one.rewards[j]), np.sign(labels[i] - labels[j])) for i, j in both
    ]
    in_rewards, in_labels = (sum(abs(pair[side]) for pair in signs) for side in (0, 1))
    agreement = sum(a * b for a, b in signs)
    expected = agreement / math.sqrt(in_rewards * in_labels) if in_rewards else 0.0
    assert kendall_tau(np.asarray(one.rewards), labels) == pytest.approx(expected, abs=1e-12)


@given(drawn_rankings())
def test_ndcg_is_the_mean_over_the_orders_that_ties_allow(one: EvaluatedRanking) -> None:
    labels = labels_of(one)
    gains = [(label - min(labels)) / (max(labels) - min(labels)) for label in labels]

    def gained(by: Sequence[float]) -> float:
        return mean(
            [
                sum(gains[index] / math.log2(place + 2) for place, index in enumerate(order))
                for order in orders(by)
            ]
        )

    expected = gained(one.rewards) / gained(gains)
    assert ndcg(np.asarray(one.rewards), labels) == pytest.approx(expected)


@given(drawn_rankings())
def test_best_of_n_is_the_mean_over_all_draws(one: EvaluatedRanking) -> None:
    quality, rewards = percentiles_of(one), one.rewards
    curve = expected_quality(np.asarray(rewards), quality)
    for n in range(1, len(rewards) + 1):
        picked = []
        for drawn in combinations(range(len(rewards)), n):
            highest = max(rewards[index] for index in drawn)
            picked.append(mean([quality[i] for i in drawn if rewards[i] == highest]))
        assert curve[n - 1] == pytest.approx(mean(picked))


def test_best_of_n_of_a_ranking_that_is_large() -> None:
    """C(2000, 1000) is over the largest float64."""
    size = 2000
    quality = np.arange(size) / (size - 1)
    curve = expected_quality(quality, quality)
    # The expected maximum of n of 1 … K is n (K + 1) / (n + 1).
    n = np.arange(1, size + 1)
    np.testing.assert_allclose(curve, (n * (size + 1) / (n + 1) - 1) / (size - 1), rtol=1e-9)


def test_the_curve_has_scores_if_all_rankings_have_them() -> None:
    scored = ranking([1, 2], [2, 1], scores=[3.0, 8.0])
    curve = figures_of([scored], QUICK).best_of_n
    assert curve.quality == "score"
    assert [point.model.value for point in curve.points] == [5.5, 8.0]
    assert [(point.best, point.random) for point in curve.points] == [(5.5, 5.5), (8.0, 5.5)]
    mixed = figures_of([scored, ranking([2, 1], [2, 1])], QUICK).best_of_n
    assert mixed.quality == "percentile"
    assert mixed.points[1].model.value == 0.5


def test_points_of_the_curve_are_over_the_rankings_that_are_large_enough() -> None:
    rankings = [ranking([1, 2], [2, 1]), ranking([1, 2, 3], [1, 2, 3], prompt="q")]
    points = figures_of(rankings, QUICK).best_of_n.points
    assert [point.num_rankings for point in points] == [2, 2, 1]
    assert (points[2].model.value, points[2].best, points[2].random) == (0.0, 1.0, 0.5)


@given(margins, st.integers(1, 12))
def test_the_calibration_error_is_the_mean_gap_of_the_bins(margins_P: Any, num_bins: int) -> None:
    bins = reliability_bins(margins_P, num_bins)
    assert sum(part.num_pairs for part in bins) == len(margins_P)
    gaps: dict[int, list[float]] = {}
    for margin in margins_P:
        probability = 1 / (1 + math.exp(-abs(margin)))
        index = min(int((probability - 0.5) / (0.5 / num_bins)), num_bins - 1)
        gaps.setdefault(index, []).append(half_point(margin) - probability)
    expected = sum(abs(sum(of_bin)) for of_bin in gaps.values()) / len(margins_P)
    assert expected_calibration_error(bins) == pytest.approx(expected, abs=1e-12)


@given(margins)
def test_no_other_temperature_has_a_smaller_log_likelihood(margins_P: Any) -> None:
    temperature = fitted_temperature(margins_P)
    if temperature is None:
        assert min(margins_P) >= 0 or mean(margins_P) <= 0
        return
    best = negative_log_likelihood(margins_P / temperature).mean()
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        other = negative_log_likelihood(margins_P / (temperature * factor)).mean()
        assert best <= other + 1e-12


@given(margins, st.floats(1e-3, 1e3))
def test_the_temperature_scales_with_the_rewards(margins_P: Any, scale: float) -> None:
    assume(min(margins_P) < -1e-3)
    temperature = fitted_temperature(margins_P)
    scaled = fitted_temperature(margins_P * scale)
    if temperature is None or scaled is None:
        assert abs(mean(margins_P)) < 1e-9 or temperature is scaled is None
    else:
        assert scaled == pytest.approx(temperature * scale, rel=1e-6)


def test_the_log_likelihood_does_not_overflow() -> None:
    assert negative_log_likelihood(np.asarray([-1e5, 0.0, 1e5])).tolist() == [
        1e5,
        pytest.approx(math.log(2)),
        0.0,
    ]


Transform = Callable[[float], float]


@pytest.mark.parametrize("transform", [lambda x: 3 * x - 7, math.exp, lambda x: x**3])
@given(rankings=drawn_sets)
def test_figures_of_the_order_ignore_a_rising_transform_of_the_rewards(
    rankings: list[EvaluatedRanking], transform: Transform
) -> None:
    before, after = (
        figures_of(some, QUICK) for some in (rankings, [mapped(r, transform) for r in rankings])
    )
    for figure in ("accuracy", "by_rank_gap", "by_length", "by_size", "best_of_n"):
        assert getattr(after, figure) == getattr(before, figure)
    assert after.kendall_tau.mean.value == pytest.approx(before.kendall_tau.mean.value)
    assert after.ndcg.mean.value == pytest.approx(before.ndcg.mean.value)
    if before.length_correlation and after.length_correlation:
        assert after.length_correlation.rewards.value == pytest.approx(
            before.length_correlation.rewards.value
        )


@given(drawn_sets, st.lists(st.integers(-9, 9), min_size=6, max_size=6))
def test_an_offset_of_a_ranking_changes_nothing(
    rankings: list[EvaluatedRanking], offsets: list[int]
) -> None:
    moved = [mapped(r, partial(add, offset)) for r, offset in zip(rankings, offsets, strict=False)]
    assert figures_of(moved, QUICK) == figures_of(rankings, QUICK)


@given(drawn_sets, st.randoms(use_true_random=False))
def test_the_order_of_the_responses_does_not_matter(
    rankings: list[EvaluatedRanking], random: Random
) -> None:
    shuffled = [reordered(r, random.sample(range(len(r.ranks)), len(r.ranks))) for r in rankings]
    before, after = figures_of(rankings, QUICK), figures_of(shuffled, QUICK)
    assert after.accuracy.accuracy.value == pytest.approx(before.accuracy.accuracy.value)
    assert after.ndcg.mean.value == pytest.approx(before.ndcg.mean.value)
    assert after.kendall_tau.mean.value == pytest.approx(before.kendall_tau.mean.value)
    assert after.calibration.nll.value == pytest.approx(before.calibration.nll.value)
    assert [p.model.value for p in after.best_of_n.points] == pytest.approx(
        [p.model.value for p in before.best_of_n.points]
    )


@given(drawn_sets)
def test_equal_rewards_are_chance(rankings: list[EvaluatedRanking]) -> None:
    figures = figures_of([mapped(r, lambda _: 1.0) for r in rankings], QUICK)
    assert figures.accuracy.accuracy.value == 0.5
    assert figures.kendall_tau.mean.value == 0.0
    assert figures.calibration.nll.value == pytest.approx(math.log(2))
    assert (figures.calibration.ece, figures.calibration.temperature) == (0.0, None)
    assert figures.length_correlation is None
    for point in figures.best_of_n.points:
        assert point.model.value == pytest.approx(point.random)


@given(drawn_sets)
def test_rewards_that_are_the_labels_are_perfect(rankings: list[EvaluatedRanking]) -> None:
    perfect = [relabelled(r, labels_of(r).tolist()) for r in rankings]
    figures = figures_of(perfect, QUICK)
    assert figures.accuracy.accuracy.value == 1.0
    assert figures.kendall_tau.mean.value == pytest.approx(1.0)
    assert figures.ndcg.mean.value == pytest.approx(1.0)
    for point in figures.best_of_n.points:
        assert point.model.value == pytest.approx(point.best)
    reversed_ = figures_of([mapped(r, lambda x: -x) for r in perfect], QUICK)
    assert reversed_.accuracy.accuracy.value == 0.0
    assert reversed_.kendall_tau.mean.value == pytest.approx(-1.0)


def mapped(one: EvaluatedRanking, transform: Transform) -> EvaluatedRanking:
    return relabelled(one, [transform(reward) for reward in one.rewards])


def relabelled(one: EvaluatedRanking, rewards: Sequence[float]) -> EvaluatedRanking:
    return ranking(rewards, one.ranks, lengths=one.lengths, prompt=one.prompt_sha256)


def reordered(one: EvaluatedRanking, order: Sequence[int]) -> EvaluatedRanking:
    return ranking(
        [one.rewards[index] for index in order],
        [one.ranks[index] for index in order],
        lengths=[one.lengths[index] for index in order],
        prompt=one.prompt_sha256,
    )


def test_best_of_n_is_defined_for_rankings_of_any_size() -> None:
    """C(1030, 515) overflows float64."""
    size = 1100
    quality = np.arange(size) / size
    order = np.random.default_rng(0).permutation(size).astype(np.float64)
    curve = expected_quality(order, quality)
    assert curve[0] == pytest.approx(quality.mean()) and curve[-1] == quality[order.argmax()]
    chosen = np.argsort(-order)
    for n in (2, 550, 1030):
        shares = [math.comb(size - i - 1, n - 1) / math.comb(size, n) for i in range(size)]
        assert curve[n - 1] == pytest.approx(np.dot(shares, quality[chosen]), rel=1e-9)


def test_a_very_high_temperature_is_as_exact_as_a_low_one() -> None:
    """Its inverse is smaller than the absolute tolerance that scipy's search has by default."""
    margins = np.zeros(10_000)
    margins[:2] = -1e6, 1e6 * (1 + 5e-9)
    # To first order in 1 / T the slope is mean(margin²) / 4 / T - mean(margin) / 2.
    expected = (margins**2).mean() / margins.mean() / 2
    assert fitted_temperature(margins) == pytest.approx(expected, rel=1e-6)
