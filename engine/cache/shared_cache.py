"""A cache of rewards that several servers share through Redis.

A server that meets the claim of another one can wait for its reward. A claim is not a lock. It ends
by itself, and a server that waits no longer computes the reward as well, which costs time and
changes nothing.

Nothing here raises an error of Redis, and nothing waits for Redis longer than its limit. What is
not known in time counts as a miss, and what cannot be stored is dropped, because a cache may lose
entries. `CacheCounters` has the totals. docs/shared-cache.md describes the options.
"""

import asyncio
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.look_ups import LookedUp, LookUps
from kwise.engine.cache.records import SERVER_ID_BYTES, RecordFormat, claim_record
from kwise.engine.cache.redis_address import RedisAddress
from kwise.engine.cache.redis_link import PAUSE_S, RedisLink
from kwise.engine.cache.reward_cache import StoredReward
from kwise.engine.cache.stores import Stores
from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install

# Storing happens in the background, so its limit can be generous.
_STORE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCacheLimits:
    """The times of a shared cache.

    Attributes:
        look_up_s: how long a look-up may delay a request, and how long one command may take.
        ttl_s: how long a reward stays; 0 for as long as Redis has room.
        claim_s: how long a claim holds; 0 for no claims.
    """

    look_up_s: float
    ttl_s: int
    claim_s: float


class SharedCache:
    """Looks rewards up in Redis and stores them there. Used from one event loop, after `start`.

    Args:
        address: where Redis is.
        limits: how long things may take or last.
        namespace: names everything except the conversation that a reward depends on.
        counters: where to count.
        pause_s: the time between a failure of Redis and the next connection.

    Attributes:
        limits: as given.
        reader, writer: the connections. A store never delays a look-up.
    """

    def __init__(
        self,
        address: RedisAddress,
        limits: SharedCacheLimits,
        *,
        namespace: bytes,
        counters: CacheCounters,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.limits = limits
        self.reader, self.writer = (
            RedisLink(address, purpose, limit_s=limit_s, counters=counters, pause_s=pause_s)
            for purpose, limit_s in (("look-ups", limits.look_up_s), ("stores", _STORE_S))
        )
        self._counters = counters
        self._records = RecordFormat(namespace)
        self._look_ups = LookUps(
            self.reader,
            self._records,
            claim=claim_record(secrets.token_bytes(SERVER_ID_BYTES)),
            claim_s=limits.claim_s,
            counters=counters,
        )
        self._stores = Stores(self.writer, ttl_s=limits.ttl_s, counters=counters)

    def start(self) -> None:
        """Connect, and begin to serve, in the running event loop."""
        self._look_ups.start()
        self._stores.start()

    async def close(self) -> None:
        """Store what is pending, for at most a second, and disconnect."""
        await asyncio.gather(self._look_ups.close(), self._stores.close())

    async def look_up(self, keys: Collection[bytes]) -> LookedUp:
        """Return what Redis knows of `keys` within the limit, and claim what it does not have."""
        looked_up = await self.ask(keys)
        num_hits, num_unanswered = len(looked_up.rewards), looked_up.unanswered
        self._counters.shared_hits += num_hits
        self._counters.shared_unanswered += num_unanswered
        self._counters.shared_misses += len(keys) - num_hits - num_unanswered
        return looked_up

    async def ask(self, keys: Collection[bytes]) -> LookedUp:
        """Do the same without counting it as a look-up: ask again for what was claimed elsewhere.

        A claim that has ended since is taken over.
        """
        return await self._look_ups.ask(keys, self.limits.look_up_s)

    def put(self, key: bytes, reward: StoredReward) -> None:
        """Store a reward in the background, which also ends the claim."""
        self._stores.put(key, self._records.reward_record(key, reward))

    def release(self, key: bytes) -> None:
        """Give up the claim of a reward that this server does not compute after all."""
        if self.limits.claim_s:
            self._stores.put(key, None)


def check_redis_installed(option: str) -> None:
    """Raise ConfigError if the package redis is missing."""
    if find_spec("redis") is None:
        raise ConfigError(f"{option} needs the package redis: {how_to_install('redis')}")
