"""Totals of an engine since it started."""

from dataclasses import dataclass, field

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.schedule.group_times import GroupDurations


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
    busy_s: float = 0.0
    idle_with_work_s: float = 0.0
    groups: GroupDurations = field(default_factory=GroupDurations)
