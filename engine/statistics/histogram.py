"""A histogram of observations: counts by bucket, and their sum.

The class of prometheus_client takes a lock at each observation, and it would make every user of the
engine install a server's dependency. One event loop owns the engine's counters, so this one needs
no lock. `kwise/engine/server/metrics/` turns it into Prometheus' form when it is scraped.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

# From 1 ms to 1 minute: a cached look-up is below, and the limit of a client is above.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def powers_of_two(first: int, last: int) -> tuple[float, ...]:
    """Return the bounds 2^first, 2^(first + 1), ... 2^last."""
    return tuple(float(1 << exponent) for exponent in range(first, last + 1))


class Histogram:
    """Counts observations by bucket.

    Args:
        bounds: the upper bounds of the buckets, ascending. A bound belongs to its bucket. A last
            bucket without a bound takes what is above.

    Attributes:
        total: the sum of all observations.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a finite value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self._counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Yield each bound, and infinity, with the number of observations up to it."""
        return zip((*self._bounds, float("inf")), accumulate(self._counts), strict=True)
