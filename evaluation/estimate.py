"""A figure with its uncertainty. Part of the schema of the JSON file, see `result.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A bootstrap interval over prompts, at the level `Settings.confidence`."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its uncertainty.

    Attributes:
        interval: None if there are fewer than two prompts to resample.
    """

    value: float
    interval: Interval | None
