"""Calibration: sigmoid(difference of rewards) as a probability, compared with the labels.

Bradley and Terry's model, which reward models are trained with, says that the first of two
responses is preferred with probability sigmoid(r_first − r_second). Each pair counts once, with the
response of the higher reward first, so probabilities lie in [0.5, 1]. Guo et al. (2017,
https://arxiv.org/abs/1706.04599) define the expected calibration error (ECE) and the temperature.

Dimensions: P pairs of all rankings.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from kwise.evaluation.metrics.bootstrap import PromptBootstrap
from kwise.evaluation.metrics.labelled import Floats, Pairs
from kwise.evaluation.result import Calibration, ReliabilityBin
from kwise.train.report.pairs import shares_right

# A slope this close to 0, in units of the mean size of a margin, is a rounding error of 0.
_ZERO = 1e-9
_TINY = float(np.finfo(np.float64).tiny)
_MAX_ITERATIONS = 2000  # halving from 1 to the smallest float64 takes 1022


def calibration_of(pairs: Pairs, num_bins: int, bootstrap: PromptBootstrap) -> Calibration:
    """Return the calibration on all pairs, of which there must be at least one."""
    nll_P = negative_log_likelihood(pairs.margin_P)
    bins = reliability_bins(pairs.margin_P, num_bins)
    temperature = fitted_temperature(pairs.margin_P)
    scaled_P = None if temperature is None else pairs.margin_P / temperature
    scaled_bins = () if scaled_P is None else reliability_bins(scaled_P, num_bins)
    return Calibration(
        nll=bootstrap.ratio(pairs.per_ranking(nll_P), pairs.per_ranking(np.ones_like(nll_P))),
        ece=expected_calibration_error(bins),
        bins=bins,
        temperature=temperature,
        scaled_nll=None if scaled_P is None else float(negative_log_likelihood(scaled_P).mean()),
        scaled_ece=None if scaled_P is None else expected_calibration_error(scaled_bins),
        scaled_bins=scaled_bins,
    )


def negative_log_likelihood(margins_P: Floats) -> Floats:
    """Return −log sigmoid(margin) of each pair, without overflow."""
    return np.logaddexp(0, -margins_P)


def reliability_bins(margins_P: Floats, num_bins: int) -> tuple[ReliabilityBin, ...]:
    """Return the bins of equal width from 0.5 to 1 that have pairs."""
    probability_P = expit(np.abs(margins_P))
    right_P = shares_right(margins_P)
    width = 0.5 / num_bins
    index_P = np.minimum(((probability_P - 0.5) / width).astype(np.int64), num_bins - 1)
    bins = []
    for index in range(num_bins):
        is_in_P = index_P == index
        if is_in_P.any():
            bins.append(
                ReliabilityBin(
                    low=0.5 + index * width,
                    high=0.5 + (index + 1) * width,
                    num_pairs=int(is_in_P.sum()),
                    probability=float(probability_P[is_in_P].mean()),
                    accuracy=float(right_P[is_in_P].mean()),
                )
            )
    return tuple(bins)


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Return the mean over pairs of |accuracy − probability| of the pair's bin."""
    num_pairs = sum(part.num_pairs for part in bins)
    return sum(part.num_pairs * abs(part.accuracy - part.probability) for part in bins) / num_pairs


def fitted_temperature(margins_P: Floats) -> float | None:
    """Return the T > 0 that minimises the mean of −log sigmoid(margin / T); None if there is none.

    The mean is convex in 1 / T, and its slope is −mean(margin · sigmoid(−margin / T)). At 1 / T = 0
    the slope must be negative, or the best T is infinite. Without a pair that is ordered wrongly
    the slope is negative everywhere, and the best T is 0.
    """
    if not margins_P.any() or margins_P.min() >= 0:
        return None
    scale = float(np.abs(margins_P).mean())
    unit_P = margins_P / scale  # so that the bracket suits rewards of any scale

    def slope(inverse: float) -> float:
        return -float((unit_P * expit(-inverse * unit_P)).mean())

    if slope(0.0) > -_ZERO:
        return None
    high = 1.0
    while slope(high) < 0:
        high *= 2
    # brentq's default absolute tolerance is 2e-12, which would be most of a small 1 / T.
    return scale / float(brentq(slope, 0.0, high, xtol=_TINY, maxiter=_MAX_ITERATIONS))
