"""Bootstrap intervals of ratios of sums, with prompts as the unit that is resampled.

The pairs of a prompt share its responses and rewards, so they are not independent, and resampling
pairs would give intervals that are too narrow. All rankings of a resampled prompt enter together.
Every figure of an evaluation is a ratio of sums over rankings: right pairs over pairs, or the sum
of a figure over the number of rankings that have it. All figures share one set of resamples, which
are drawn once as counts. `scipy.stats.bootstrap` gives the same intervals, but draws anew for each
figure.

Dimensions: R rankings; C distinct prompts; B resamples.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwise.evaluation.estimate import Estimate, Interval
from kwise.evaluation.result import Settings

_BATCH_BYTES = 64 << 20
_MAX_COUNT = np.iinfo(np.uint8).max


class PromptBootstrap:
    """Resamples prompts.

    The counts of the resamples take B × C bytes: 20 MB for 10,000 prompts by default.

    Args:
        prompts: the hash of the prompt of each ranking.
    """

    def __init__(self, prompts: Sequence[str], settings: Settings) -> None:
        unique, self._cluster_R = np.unique(np.asarray(prompts), return_inverse=True)
        self.num_prompts = len(unique)
        self._confidence = settings.confidence
        self._counts_BC = _counts(self.num_prompts, settings)

    def ratio(self, numerator_R: NDArray[Any], denominator_R: NDArray[Any]) -> Estimate:
        """Return sum(numerator) / sum(denominator) with a percentile interval.

        The sum of the denominator must not be 0. Resamples in which it is 0 do not count. There is
        no interval if fewer than two prompts contribute.
        """
        value = float(numerator_R.sum() / denominator_R.sum())
        resampled_B = self.resampled_ratios(numerator_R, denominator_R)
        if resampled_B is None:
            return Estimate(value=value, interval=None)
        return Estimate(value=value, interval=self.interval(resampled_B))

    def interval(self, resampled_B: NDArray[np.float64]) -> Interval:
        """Return the percentile interval of resampled values."""
        return percentile_interval(resampled_B, self._confidence)

    def resampled_ratios(
        self, numerator_R: NDArray[Any], denominator_R: NDArray[Any]
    ) -> NDArray[np.float64] | None:
        """Return the ratio in each resample in which it is defined.

        None if fewer than two prompts contribute.
        """
        denominator_C = self._totals(denominator_R)
        if np.count_nonzero(denominator_C) < 2:
            return None
        totals_C2 = np.stack([self._totals(numerator_R), denominator_C], axis=1)
        sums_B2 = np.concatenate([counts @ totals_C2 for counts in self._batches()])
        defined_B2 = sums_B2[sums_B2[:, 1] != 0]
        ratios: NDArray[np.float64] = defined_B2[:, 0] / defined_B2[:, 1]
        return ratios

    def num_prompts_above(self, values_R: NDArray[Any], limits_R: NDArray[Any]) -> int:
        """Return the number of prompts whose values have a larger sum, by size, than the limits."""
        return int(np.count_nonzero(np.abs(self._totals(values_R)) > self._totals(limits_R)))

    def _totals(self, values_R: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum over the rankings of each prompt, float64[C]."""
        weights_R = values_R.astype(np.float64)
        totals: NDArray[np.float64] = np.bincount(
            self._cluster_R, weights=weights_R, minlength=self.num_prompts
        ).astype(np.float64)
        return totals

    def _batches(self) -> Iterator[NDArray[np.float64]]:
        """Yield the counts of some resamples at a time, so that float64 takes little memory."""
        rows = max(_BATCH_BYTES // (8 * self.num_prompts), 1)
        for start in range(0, len(self._counts_BC), rows):
            yield self._counts_BC[start : start + rows].astype(np.float64)


def percentile_interval(resampled_B: NDArray[np.float64], confidence: float) -> Interval:
    """Return the percentile interval of the values of a figure in B resamples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled_B, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high))


def _counts(num_prompts: int, settings: Settings) -> NDArray[np.uint8]:
    """Return how often each prompt is in each resample, uint8[B, C]."""
    generator = np.random.default_rng(settings.seed)
    counts_BC = np.empty((settings.num_resamples, num_prompts), dtype=np.uint8)
    for counts_C in counts_BC:
        drawn = generator.integers(num_prompts, size=num_prompts)
        # A prompt is drawn 255 times with a probability of about 1e-500.
        counts_C[:] = np.minimum(np.bincount(drawn, minlength=num_prompts), _MAX_COUNT)
    return counts_BC
