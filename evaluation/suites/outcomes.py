"""The outcomes of a benchmark's units by subset, their means, and the means of resamples.

Dimensions: B resamples, N units of a subset, C columns.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwise.evaluation.suites.benchmark import Benchmark, BenchmarkItem, Rewards
from kwise.evaluation.suites.score_tree import SubsetMeans

_MAX_BATCH = 1 << 22  # counts of resamples at a time: 32 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetOutcomes:
    """The outcomes of the units of a subset.

    Attributes:
        columns: the names of the columns.
        values_NC: float64; NaN where a unit does not have the column.
    """

    columns: tuple[str, ...]
    values_NC: NDArray[np.float64]

    @property
    def num_units(self) -> int:
        """The number of units, N."""
        return len(self.values_NC)

    def means(self) -> SubsetMeans:
        """Return the mean of each column, over the units that have it."""
        return self._means_of(np.ones((1, self.num_units)))

    def resampled(self, num_resamples: int, rng: np.random.Generator) -> SubsetMeans:
        """Return the means of resamples, each of N units drawn with replacement."""
        size = max(1, _MAX_BATCH // self.num_units)
        chances_N = np.full(self.num_units, 1 / self.num_units)
        parts = [
            self._means_of(rng.multinomial(self.num_units, chances_N, size=rows).astype(float))
            for rows in (
                min(size, num_resamples - start) for start in range(0, num_resamples, size)
            )
        ]
        return SubsetMeans(
            num_units=self.num_units,
            columns={
                name: np.concatenate([part.columns[name] for part in parts])
                for name in self.columns
            },
        )

    def _means_of(self, counts_BN: NDArray[np.float64]) -> SubsetMeans:
        has_NC = ~np.isnan(self.values_NC)
        sums_BC = counts_BN @ np.where(has_NC, self.values_NC, 0.0)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no unit has the column
            means_BC = sums_BC / (counts_BN @ has_NC)
        return SubsetMeans(
            num_units=self.num_units,
            columns={name: means_BC[:, index] for index, name in enumerate(self.columns)},
        )


def outcomes_by_subset(
    benchmark: Benchmark, scored: Sequence[tuple[BenchmarkItem, Rewards]]
) -> dict[str, SubsetOutcomes]:
    """Return the outcomes of the units of each subset that has any."""
    units: defaultdict[tuple[str, str], list[tuple[BenchmarkItem, Rewards]]] = defaultdict(list)
    for index, (item, rewards) in enumerate(scored):
        assert len(rewards) == len(item.responses), "a reward per response"
        units[item.subset, item.unit or f"row {index}"].append((item, rewards))
    outcomes = defaultdict(list)
    for (subset, _), rows in units.items():
        outcomes[subset].append(benchmark.outcome(rows))
    return {
        subset: SubsetOutcomes(
            columns=tuple(rows[0]),
            values_NC=np.asarray([list(row.values()) for row in rows], dtype=np.float64),
        )
        for subset, rows in outcomes.items()
    }
