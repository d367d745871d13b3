"""The engine's histograms and statistics of rewards, compared with NumPy."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.engine.statistics.histogram import SECONDS, Histogram, powers_of_two
from kwise.engine.statistics.reward_statistics import HALF_LIFE, VALUES, RewardStatistics

BOUNDS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20, unique=True).map(sorted)
VALUE_LISTS = st.lists(st.floats(-1e6, 1e6), max_size=50)


@given(BOUNDS, VALUE_LISTS)
def test_a_bucket_counts_what_is_at_most_its_bound(
    bounds: list[float], values: list[float]
) -> None:
    histogram = Histogram(bounds)
    for value in [*values, *bounds]:
        histogram.observe(value)
    buckets = dict(histogram.cumulative())
    assert list(buckets) == [*bounds, math.inf]
    for bound, count in buckets.items():
        assert count == sum(value <= bound for value in [*values, *bounds])
    assert histogram.count == len(values) + len(bounds)
    assert histogram.total == pytest.approx(math.fsum([*values, *bounds]), abs=1e-6)


@pytest.mark.parametrize("bounds", [SECONDS, VALUES, powers_of_two(0, 10)])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert all(lower < upper for lower, upper in pairwise(bounds))


PAIRS = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 5000)), min_size=2, max_size=80)


@given(PAIRS)
def test_recent_rewards_have_the_weighted_moments_of_numpy(
    observed: list[tuple[float, int]],
) -> None:
    statistics = RewardStatistics()
    for value, length in observed:
        statistics.observe(value, length, 0.0)
    values, lengths = np.array(observed, np.float64).T
    weights = 0.5 ** (np.arange(len(observed))[::-1] / HALF_LIFE)
    assert statistics.mean_value == pytest.approx(np.average(values, weights=weights))
    assert statistics.mean_length == pytest.approx(np.average(lengths, weights=weights))
    covariance = np.cov(values, lengths, aweights=weights, ddof=0)
    assert statistics.std_value == pytest.approx(math.sqrt(covariance[0, 0]), abs=1e-6)
    if np.ptp(values) > 1e-3 and np.ptp(lengths) > 0:
        expected = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
        assert statistics.correlation == pytest.approx(expected, abs=1e-6)


def test_a_correlation_needs_rewards_and_lengths_that_differ() -> None:
    statistics = RewardStatistics()
    assert statistics.correlation is None
    for length in (1, 2, 3):
        statistics.observe(0.5, length, 0.0)
    assert statistics.correlation is None
    statistics.observe(0.75, 3, 0.0)
    assert statistics.correlation is not None


def test_older_rewards_count_less() -> None:
    """A policy that starts to be paid for length shows in some half-lives, not after a day."""
    random = np.random.default_rng(0)
    statistics = RewardStatistics()
    for value, length in zip(
        random.normal(size=20_000), random.integers(1, 500, 20_000), strict=True
    ):
        statistics.observe(float(value), int(length), 0.0)
    assert abs(statistics.correlation or 0.0) < 0.1
    for length in random.integers(1, 500, 3 * HALF_LIFE):
        statistics.observe(length / 100, int(length), 0.0)
    assert (statistics.correlation or 0.0) > 0.7
