"""The bootstrap resamples prompts, and agrees with SciPy's."""

import numpy as np
import pytest
from scipy import stats

from kwise.evaluation.estimate import Interval
from kwise.evaluation.figures import figures_of
from kwise.evaluation.metrics.bootstrap import PromptBootstrap
from kwise.evaluation.result import Settings
from tests.evaluation.rankings import QUICK, ranking


def test_the_interval_is_the_one_of_scipy() -> None:
    generator = np.random.default_rng(0)
    denominator = generator.integers(1, 30, 80)
    numerator = generator.binomial(denominator, 0.7)
    bootstrap = PromptBootstrap([str(i) for i in range(80)], Settings(num_resamples=20_000))
    estimate = bootstrap.ratio(numerator, denominator)
    expected = stats.bootstrap(
        (numerator, denominator),
        lambda n, d, axis: n.sum(axis) / d.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
    ).confidence_interval
    assert estimate.value == numerator.sum() / denominator.sum()
    assert estimate.interval is not None
    # The standard error of such a limit over 20,000 resamples is 0.0003.
    assert estimate.interval.low == pytest.approx(expected.low, abs=0.002)
    assert estimate.interval.high == pytest.approx(expected.high, abs=0.002)


def test_rankings_of_a_prompt_enter_a_resample_together() -> None:
    """Ten copies of each prompt say no more than one, so the interval is the same."""
    one = [
        ranking([1, 0], [1, 2] if i % 3 else [2, 1], prompt=f"{i:02}", origin=f"f:{i}")
        for i in range(30)
    ]
    intervals = [
        figures_of(rankings, QUICK).accuracy.accuracy.interval for rankings in (one, one * 10)
    ]
    assert intervals[0] is not None and intervals[1] is not None
    assert (intervals[1].low, intervals[1].high) == pytest.approx(
        (intervals[0].low, intervals[0].high)
    )
    apart = [ranking(r.rewards, r.ranks, prompt=f"{i}") for i, r in enumerate(one * 10)]
    narrow = figures_of(apart, QUICK).accuracy.accuracy.interval
    assert narrow is not None
    assert narrow.high - narrow.low < (intervals[0].high - intervals[0].low) / 2


def test_one_prompt_has_no_interval() -> None:
    figures = figures_of([ranking([1, 0], [1, 2]), ranking([1, 0], [2, 1])], QUICK)
    assert figures.num_prompts == 1
    assert figures.accuracy.accuracy.value == 0.5
    assert figures.accuracy.accuracy.interval is None
    assert figures.best_of_n.points[0].model.interval is None


def test_a_part_with_pairs_of_one_prompt_has_no_interval() -> None:
    rankings = [ranking([1, 0], [1, 2]), ranking([2, 1, 0], [1, 2, 3], prompt="q")]
    parts = {part.name: part for part in figures_of(rankings, QUICK).by_rank_gap}
    assert parts["ranks 1 apart"].accuracy.interval == Interval(low=1.0, high=1.0)
    assert parts["ranks 2 apart"].accuracy.interval is None


def test_the_seed_decides() -> None:
    rankings = [ranking([i % 7, i % 5], [1, 2], prompt=str(i)) for i in range(40)]
    first, again, other = (
        figures_of(rankings, Settings(seed=seed, num_resamples=100)) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first.accuracy.accuracy.value == other.accuracy.accuracy.value
