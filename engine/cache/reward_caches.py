"""The reward cache of this process, and the shared one behind it."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.reward_cache import RewardCache, StoredReward
from kwise.engine.cache.shared_cache import SharedCache
from kwise.engine.cache_usage import CacheUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRewards:
    """What is known of a group's rewards before any is started.

    Attributes:
        cached: the rewards that are cached, by key.
        elsewhere: the keys of those that another server computes now.
    """

    cached: dict[bytes, StoredReward]
    elsewhere: set[bytes] = field(default_factory=set)


class RewardCaches:
    """Looks rewards up in this process first, then in the shared cache if there is one.

    Args:
        max_bytes, num_members: see `RewardCache`.

    Attributes:
        shared: the shared cache; None without one.
    """

    def __init__(
        self,
        max_bytes: int,
        shared: SharedCache | None,
        counters: CacheCounters,
        num_members: int = 1,
    ) -> None:
        self.shared = shared
        self._local = RewardCache(max_bytes, num_members)
        self._counters = counters

    async def look_up(self, keys: Sequence[bytes], in_flight: Container[bytes]) -> KnownRewards:
        """Return what is known of the rewards of `keys`. Those in flight are not looked up."""
        cached = self._look_up_here(keys)
        asked = {key for key in keys if key not in cached and key not in in_flight}
        if self.shared is None or not asked:
            return KnownRewards(cached=cached)
        looked_up = await self.shared.look_up(asked)
        for key, reward in looked_up.rewards.items():
            self._local.put(key, reward)
        self._counters.cache_hits += len(looked_up.rewards)
        cached |= looked_up.rewards
        # Other requests may have been answered meanwhile.
        cached |= self._look_up_here([key for key in keys if key not in cached])
        return KnownRewards(cached=cached, elsewhere=looked_up.elsewhere)

    @property
    def usage(self) -> CacheUsage:
        """The rewards that are cached in this process."""
        return self._local.usage

    def put(self, key: bytes, reward: StoredReward) -> None:
        """Store a reward in this process. `SharedCache.put` does it for all of them."""
        self._local.put(key, reward)

    def _look_up_here(self, keys: Sequence[bytes]) -> dict[bytes, StoredReward]:
        found = {key: self._local.get(key) for key in keys}
        cached = {key: reward for key, reward in found.items() if reward is not None}
        self._counters.cache_hits += len(cached)
        return cached
