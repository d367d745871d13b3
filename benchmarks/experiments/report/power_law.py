"""A power law with an asymptote, a − b · n^−c, fitted to accuracies by the number of prompts n.

scipy's `curve_fit` finds a, b and c by least squares. Each draw of the bootstrap is fitted again,
and the intervals are quantiles over the draws. What lies beyond the largest n is extrapolation; the
interval covers the draw of seeds and prompts, not the choice of this curve.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

_START = (0.78, 0.3, 0.5)
_BOUNDS = ([0.5, 0.0, 0.01], [1.0, 5.0, 3.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """The parameters of one fit."""

    asymptote: float
    factor: float
    exponent: float

    def at(self, sizes: np.ndarray | float) -> np.ndarray:
        """Return the accuracy with `sizes` prompts."""
        return np.asarray(_curve(np.asarray(sizes), self.asymptote, self.factor, self.exponent))


def fit(sizes: Sequence[int], accuracies: np.ndarray) -> PowerLaw | None:
    """Return the fit; None with fewer than three sizes, or if the search does not converge."""
    if len(sizes) < len(_START) or not np.isfinite(accuracies).all():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            found, _ = curve_fit(
                _curve, np.array(sizes, float), accuracies, p0=_START, bounds=_BOUNDS
            )
    except RuntimeError:  # no convergence
        return None
    return PowerLaw(asymptote=found[0], factor=found[1], exponent=found[2])


def _curve(sizes: np.ndarray, asymptote: float, factor: float, exponent: float) -> np.ndarray:
    return asymptote - factor * sizes**-exponent
