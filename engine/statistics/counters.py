"""Totals of an engine since it started."""

from dataclasses import dataclass, field, fields

from kwise import types
from kwise.engine.cache.counters import CacheCounters
from kwise.engine.statistics.group_times import GroupDurations
from kwise.engine.statistics.histogram import SECONDS, Histogram, powers_of_two
from kwise.engine.statistics.reward_statistics import RewardStatistics


@dataclass(slots=True, kw_only=True)
class PassHistograms:
    """The sizes and the times of the model's passes.

    Attributes:
        rows: token rows of a pass, padding included.
        sequences: conversations of a pass.
        seconds: the time of a pass.
    """

    rows: Histogram = field(default_factory=lambda: Histogram(powers_of_two(4, 15)))
    sequences: Histogram = field(default_factory=lambda: Histogram(powers_of_two(0, 10)))
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))


@dataclass(slots=True, kw_only=True)
class Counters(CacheCounters):
    """Totals that only grow. See `Counters` in reward.proto for the meaning of the numbers."""

    model_passes: int = 0
    sequences: int = 0
    rows: int = 0
    unshared_rows: int = 0
    reused_rows: int = 0
    joined: int = 0
    rejected_groups: int = 0
    abandoned: int = 0
    failed_sequences: int = 0
    truncated_sequences: int = 0
    dropped_tokens: int = 0
    control_tokens: int = 0
    busy_s: float = 0.0
    idle_with_work_s: float = 0.0
    groups: GroupDurations = field(default_factory=GroupDurations)
    passes: PassHistograms = field(default_factory=PassHistograms)
    rewards: RewardStatistics = field(default_factory=RewardStatistics)

    @property
    def answered_groups(self) -> int:
        """Groups that were answered."""
        return self.groups.success.count

    @property
    def cached_groups(self) -> int:
        """Answered groups that cost no pass of the model."""
        return self.groups.cache_hit.count

    @property
    def failed_groups(self) -> int:
        """Groups that were refused, failed or cancelled."""
        return self.groups.failure.count


def counters_of(counters: Counters) -> types.Counters:
    """Return what a description of the model says about the totals."""
    return types.Counters(**{f.name: getattr(counters, f.name) for f in fields(types.Counters)})
