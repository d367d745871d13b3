"""The reward cache of this process, and the shared one behind it."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.reward_cache import RewardCache, StoredReward
from kwise.engine.cache.shared_cache import SharedCache
from kwise.engine.cache_usage import CacheUsage
from kwise.types import Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRewards:
    """The rewards of a group that are known before any is started.

    Attributes:
        cached: the rewards that are cached, by key. Each has `cached` set.
        elsewhere: the keys of those that another server computes now.
    """

    cached: dict[bytes, Reward]
    elsewhere: set[bytes] = field(default_factory=set)


class RewardCaches:
    """Looks rewards up in this process first, then in the shared cache if there is one.

    The rewards of this process are cached as replies have them. Making them for each reply would
    take a fifth of the time of a cached group.

    Args:
        max_bytes, num_members: see `RewardCache`.
        to_reply: returns a cached reward as replies have it.

    Attributes:
        shared: the shared cache; None without one.
    """

    def __init__(
        self,
        max_bytes: int,
        shared: SharedCache | None,
        counters: CacheCounters,
        to_reply: Callable[[StoredReward], Reward],
        num_members: int = 1,
    ) -> None:
        self.shared = shared
        self._local = RewardCache(max_bytes, num_members)
        self._counters = counters
        self._to_reply = to_reply

    async def look_up(self, keys: Sequence[bytes], in_flight: Container[bytes]) -> KnownRewards:
        """Return what is known of the rewards of `keys`. Those in flight are not looked up."""
        cached = self._look_up_here(keys)
        asked = {key for key in keys if key not in cached and key not in in_flight}
        if self.shared is None or not asked:
            return KnownRewards(cached=cached)
        looked_up = await self.shared.look_up(asked)
        for key, stored in looked_up.rewards.items():
            cached[key] = self._to_reply(stored)
            self._local.put(key, cached[key])
        self._counters.cache_hits += len(looked_up.rewards)
        # Other requests may have been answered meanwhile.
        cached |= self._look_up_here([key for key in keys if key not in cached])
        return KnownRewards(cached=cached, elsewhere=looked_up.elsewhere)

    @property
    def usage(self) -> CacheUsage:
        """The rewards that are cached in this process."""
        return self._local.usage

    def put(self, key: bytes, reward: StoredReward) -> None:
        """Store a reward in this process. `SharedCache.put` does it for all of them."""
        self._local.put(key, self._to_reply(reward))

    def _look_up_here(self, keys: Sequence[bytes]) -> dict[bytes, Reward]:
        found = {key: self._local.get(key) for key in keys}
        cached = {key: reward for key, reward in found.items() if reward is not None}
        self._counters.cache_hits += len(cached)
        return cached
