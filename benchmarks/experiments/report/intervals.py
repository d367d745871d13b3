"""Accuracies and their intervals, over seeds and prompts together.

A cell has the right pairs of each test prompt. A draw of the bootstrap draws seeds with
replacement and prompts with replacement, independently: Owen 2007, "The pigeonhole bootstrap".
The same draws serve every group of cells, so the interval of a difference is that of paired cells.

Dimensions: S seeds; N prompts; B draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kwise.benchmarks.experiments.responses import split

_SEED = 12345
_BOUNDS = (2.5, 97.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """Return the text "74.1 % (73.0–75.2)", or a dash if nothing was measured."""
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.1%} ({100 * self.low:.1f}–{100 * self.high:.1f})".replace("%", " %")

    def points(self) -> str:
        """Return a difference as "+0.4 (−0.1 to +0.9)", in percentage points, or a dash."""
        if math.isnan(self.value):
            return "–"
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.value:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")


class Bootstrap:
    """The draws of seeds and prompts, and the accuracies under each."""

    def __init__(self, pairs: Sequence[float], num_draws: int) -> None:
        """Draw the prompts, of which `pairs` are the numbers of pairs."""
        self._pairs_N = np.array(pairs)
        self._prompts_BN = _weights(len(pairs), num_draws)

    def accuracies(
        self,
        right_by_seed: Mapping[int, Sequence[float]],
        pairs_by_seed: Mapping[int, Sequence[float]] | None = None,
    ) -> np.ndarray:
        """Return the accuracy of each draw, float64[1 + B]; the first is that of all cells.

        Args:
            right_by_seed: the right pairs of the seed's test prompts, for each seed.
            pairs_by_seed: their pairs, if not the prompts' own.
        """
        num_draws, num_prompts = self._prompts_BN.shape
        if not right_by_seed:  # the run was stopped before this cell
            return np.full(num_draws, np.nan)
        seeds_BS = _weights(len(right_by_seed), num_draws - 1)
        rights, totals = np.zeros(num_draws), np.zeros(num_draws)
        for seeds_B, (seed, right) in zip(seeds_BS.T, sorted(right_by_seed.items()), strict=True):
            test = split(num_prompts, seed).test.numpy()
            pairs = self._pairs_N[test] if pairs_by_seed is None else np.array(pairs_by_seed[seed])
            weights = seeds_B[:, None] * self._prompts_BN[:, test]
            rights += weights @ np.array(right)
            totals += weights @ pairs
        return rights / totals

    def of_rule(self, right: Sequence[float]) -> np.ndarray:
        """Return the accuracy of each draw of a rule that needs no training, over all prompts."""
        prompts_BN = self._prompts_BN
        result: np.ndarray = prompts_BN @ np.array(right) / (prompts_BN @ self._pairs_N)
        return result


def _weights(number: int, num_draws: int) -> np.ndarray:
    """Return how often each of `number` things is drawn, [1 + B, number]; first each of them once.

    The same numbers give the same draws.
    """
    random = np.random.default_rng([_SEED, number])
    drawn = random.multinomial(number, np.full(number, 1 / number), num_draws)
    return np.vstack([np.ones(number), drawn])


def estimate(values: np.ndarray) -> Estimate:
    """Return the estimate of draws of which the first is the value itself."""
    low, high = np.percentile(values[1:], _BOUNDS)
    return Estimate(value=float(values[0]), low=float(low), high=float(high))


def by_seed(lines: Sequence[Mapping[str, Any]], field: str) -> dict[int, Sequence[float]]:
    """Return a field of result lines that differ in nothing but their seed."""
    return {line["cell"]["seed"]: line[field] for line in lines}
