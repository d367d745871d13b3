"""Accuracies and their intervals, over seeds and prompts together.

A cell has the right pairs of each test prompt. A draw of the bootstrap draws seeds with
replacement and prompts with replacement, independently: Owen 2007, "The pigeonhole bootstrap".
The same draws serve every group of cells, so the interval of a difference is that of paired cells.

Dimensions: S seeds; N prompts; B draws.
"""

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
        """Return the text "74.1 % (73.0–75.2)"."""
        return f"{self.value:.1%} ({100 * self.low:.1f}–{100 * self.high:.1f})".replace("%", " %")

    def points(self) -> str:
        """Return a difference as the text "+0.4 (−0.1 to +0.9)", in percentage points."""
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.value:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")


class Bootstrap:
    """The draws of seeds and prompts, and the sums of pairs under each."""

    def __init__(self, pairs: Sequence[float], num_seeds: int, num_draws: int) -> None:
        """Draw.

        Args:
            pairs: the number of pairs of each prompt.
            num_seeds: the seeds are 0 … `num_seeds` − 1.
            num_draws: B.
        """
        random = np.random.default_rng(_SEED)
        num_prompts = len(pairs)
        self._pairs_N = np.array(pairs)
        self._tests = [split(num_prompts, seed).test.numpy() for seed in range(num_seeds)]
        # The first row has all weights 1: the estimate itself.
        self._seeds_BS = np.vstack(
            [
                np.ones(num_seeds),
                random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_draws),
            ]
        )
        self._prompts_BN = np.vstack(
            [
                np.ones(num_prompts),
                random.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), num_draws),
            ]
        )

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
        rights, totals = np.zeros(len(self._seeds_BS)), np.zeros(len(self._seeds_BS))
        for seed, right in right_by_seed.items():
            test = self._tests[seed]
            pairs = self._pairs_N[test] if pairs_by_seed is None else np.array(pairs_by_seed[seed])
            weights = self._seeds_BS[:, seed, None] * self._prompts_BN[:, test]
            rights += weights @ np.array(right)
            totals += weights @ pairs
        with np.errstate(invalid="ignore"):
            return rights / totals

    def of_rule(self, right: Sequence[float]) -> np.ndarray:
        """Return the accuracy of each draw of a rule that needs no training, over all prompts."""
        prompts_BN = self._prompts_BN
        result: np.ndarray = prompts_BN @ np.array(right) / (prompts_BN @ self._pairs_N)
        return result


def estimate(values: np.ndarray) -> Estimate:
    """Return the estimate of draws of which the first is the value itself."""
    low, high = np.nanpercentile(values[1:], _BOUNDS)
    return Estimate(value=float(values[0]), low=float(low), high=float(high))


def by_seed(lines: Sequence[Mapping[str, Any]], field: str) -> dict[int, Sequence[float]]:
    """Return a field of result lines that differ in nothing but their seed."""
    return {line["cell"]["seed"]: line[field] for line in lines}
