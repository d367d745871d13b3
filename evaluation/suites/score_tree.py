"""Scores as trees of means, which one function evaluates for the data and for each resample.

Dimensions: B resamples (1 for the data itself), N units of a subset.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""float64[B]; NaN where the data has no unit for a mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetMeans:
    """The means of a subset's columns.

    Attributes:
        num_units: N, the weight of the subset where subsets are pooled.
        columns: the mean of each column, float64[B].
    """

    num_units: int
    columns: Mapping[str, Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetMean:
    """A weighted sum of columns, in one mean over the units of all its subsets that have units.

    Attributes:
        columns: the weight of each column. The weights of RewardBench 2's Ties add up to 1.01.
    """

    subsets: tuple[str, ...]
    columns: Mapping[str, float] = field(default_factory=lambda: {"score": 1.0})

    def subset_names(self) -> frozenset[str]:
        """Return the subsets that the score depends on."""
        return frozenset(self.subsets)

    def values(self, means: Mapping[str, SubsetMeans]) -> Values:
        """Return the score, float64[B], or an array of one NaN if no subset has units."""
        present = [means[subset] for subset in self.subsets if subset in means]
        if not present:
            return np.array([np.nan])
        sums = [
            subset.num_units
            * sum(weight * subset.columns[column] for column, weight in self.columns.items())
            for subset in present
        ]
        return np.asarray(sum(sums) / sum(subset.num_units for subset in present))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedMean:
    """A weighted mean of scores. Parts without data are left out, as the official scripts do."""

    parts: tuple[tuple["SubsetMean | WeightedMean", float], ...]

    def subset_names(self) -> frozenset[str]:
        """Return the subsets that the score depends on."""
        return frozenset().union(*(part.subset_names() for part, _ in self.parts))

    def values(self, means: Mapping[str, SubsetMeans]) -> Values:
        """Return the score, float64[B], or an array of one NaN if no part has data."""
        present = [
            (part.values(means), weight)
            for part, weight in self.parts
            if part.subset_names() & means.keys()
        ]
        if not present:
            return np.array([np.nan])
        weighted = [weight * values for values, weight in present]
        return np.asarray(sum(weighted) / sum(weight for _, weight in present))


def mean_of(*parts: SubsetMean | WeightedMean) -> WeightedMean:
    """Return the mean of `parts` with equal weights."""
    return WeightedMean(parts=tuple((part, 1.0) for part in parts))
