"""Totals of the reward caches since the engine started."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class CacheCounters:
    """Totals that only grow. See `Counters` in reward.proto for the meaning of the numbers."""

    cache_hits: int = 0
    cache_misses: int = 0
    shared_hits: int = 0
    shared_misses: int = 0
    shared_unanswered: int = 0
    shared_joined: int = 0
    shared_timeouts: int = 0
    shared_errors: int = 0
    shared_rubbish: int = 0
    shared_stored: int = 0
    shared_dropped: int = 0
