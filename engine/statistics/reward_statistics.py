"""The distribution of the rewards that were computed, and their correlation with length.

A policy that is trained against a reward model may learn what the model likes about the form of a
response, its length above all. The correlation of reward and length shows it while it happens. A
total since the start would hide it after a day, so older rewards count less: the weight of a reward
halves with each `HALF_LIFE` rewards that follow. Rewards from a cache are not counted again.

The recurrences are those of Welford (1962) with weights (West 1979), which lose no digits where a
difference of sums of squares would.
"""

import math

from kwise.engine.statistics.histogram import SECONDS, Histogram

# Some RL steps. The weights sum up to 1443 rewards, and a correlation of 0 is measured within 0.02
# (one standard deviation).
HALF_LIFE = 1000
_DECAY = 0.5 ** (1 / HALF_LIFE)

# In units of the value, whose standard deviation on the reference set is 1 after `kwise calibrate`.
VALUES = tuple(half / 2 for half in range(-12, 13))


class RewardStatistics:
    """Statistics of computed rewards.

    Attributes:
        values: a histogram of the values.
        queue_s: a histogram of the seconds that each reward waited for its batch.
        mean_value: the mean of recent values; 0 before the first.
        mean_length: the mean of recent lengths of responses, in tokens; 0 before the first.
    """

    __slots__ = (
        "_length_squares",
        "_products",
        "_value_squares",
        "_weight",
        "mean_length",
        "mean_value",
        "queue_s",
        "values",
    )

    def __init__(self) -> None:
        self.values = Histogram(VALUES)
        self.queue_s = Histogram(SECONDS)
        self.mean_value = self.mean_length = 0.0
        self._weight = self._value_squares = self._length_squares = self._products = 0.0

    def observe(self, value: float, length: int, queue_s: float) -> None:
        """Count a reward.

        Args:
            value: the normalised reward; finite.
            length: the tokens of the response.
            queue_s: the seconds that it waited for its batch.
        """
        self.values.observe(value)
        self.queue_s.observe(queue_s)
        self._weight = _DECAY * self._weight + 1
        from_value, from_length = value - self.mean_value, length - self.mean_length
        self.mean_value += from_value / self._weight
        self.mean_length += from_length / self._weight
        to_length = length - self.mean_length
        self._value_squares = _DECAY * self._value_squares + from_value * (value - self.mean_value)
        self._length_squares = _DECAY * self._length_squares + from_length * to_length
        self._products = _DECAY * self._products + from_value * to_length

    @property
    def is_empty(self) -> bool:
        """True before the first reward."""
        return not self._weight

    @property
    def std_value(self) -> float:
        """The standard deviation of recent values; 0 before the second."""
        return math.sqrt(self._value_squares / self._weight) if self._weight else 0.0

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation of recent values and lengths; None if one of them is constant."""
        scale = math.sqrt(self._value_squares) * math.sqrt(self._length_squares)
        return self._products / scale if scale else None
