"""A cache of rewards that several servers share through Redis.

Look-ups that come while another one is under way are collected and sent as one MGET, so a busy
server sends few commands, and requests that ask for the same reward at the same time ask Redis
once. Rewards are stored in the background, many in one pipeline.

A reward that Redis does not have is claimed: `SET key claim NX GET PX` marks it for some seconds,
or returns what another server has put there meanwhile. A server that meets the claim of another
one can wait for its reward. A claim is not a lock. It ends by itself, and a server that waits no
longer computes the reward as well, which costs time and changes nothing.

Nothing here raises an error of Redis, and nothing waits for Redis longer than its limit. What is
not known in time counts as a miss, and what cannot be stored is dropped, because a cache may lose
entries. `CacheCounters` has the totals. docs/shared-cache.md describes the options.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.records import (
    KEY_PREFIX,
    RUBBISH,
    SERVER_ID_BYTES,
    Claim,
    RecordFormat,
    claim_record,
)
from kwise.engine.cache.redis_address import RedisAddress
from kwise.engine.cache.redis_link import PAUSE_S, RedisLink
from kwise.engine.cache.reward_cache import StoredReward
from kwise.errors import ConfigError
from kwise.extras import how_to_install
from kwise.library_errors import cause_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LOG = logging.getLogger(__name__)

# Reading a reply of this many values takes a few milliseconds of the event loop.
_MAX_BATCH = 512
# Rewards that wait to be stored take about 300 bytes each.
_MAX_PENDING = 65_536
# Storing happens in the background, so its limit can be generous.
_STORE_S = 5.0
_CLOSE_S = 1.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp:
    """What the shared cache knows of some rewards.

    Attributes:
        rewards: those that it has, by key.
        elsewhere: the keys of those that another server computes now.
        unanswered: the number of those that Redis did not tell about in time.
    """

    rewards: dict[bytes, StoredReward] = field(default_factory=dict)
    elsewhere: set[bytes] = field(default_factory=set)
    unanswered: int = 0


@dataclass(slots=True, eq=False)
class _Batch:
    """Keys that are looked up together, and the answer; None if there was none."""

    keys: list[bytes] = field(default_factory=list)
    answer: "asyncio.Future[LookedUp | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class SharedCache:
    """Looks rewards up in Redis and stores them there. Used from one event loop, after `start`.

    Args:
        address: where Redis is.
        limits: how long things may take or last.
        namespace: names everything that a reward depends on beside the conversation.
        counters: where to count.
        pause_s: the time between a failure of Redis and the next connection.
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
        self._counters = counters
        self._records = RecordFormat(namespace)
        self._claim = claim_record(secrets.token_bytes(SERVER_ID_BYTES))
        self.reader = RedisLink(
            address, "look-ups", limit_s=limits.look_up_s, counters=counters, pause_s=pause_s
        )
        self.writer = RedisLink(
            address, "stores", limit_s=_STORE_S, counters=counters, pause_s=pause_s
        )
        self._batch_of: dict[bytes, _Batch] = {}  # of each key that is being looked up
        self._batches: deque[_Batch] = deque()  # those that have not been sent yet
        self._look_up_arrived = asyncio.Event()
        self._pending: dict[bytes, bytes | None] = {}  # records to store; None to give up a claim
        self._store_arrived = asyncio.Event()
        self._is_closing = False
        self._refusals: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Connect, and begin to serve, in the running event loop."""
        self.reader.start()
        self.writer.start()
        self._tasks = [
            asyncio.create_task(self._serve_look_ups(), name="kwise shared look-ups"),
            asyncio.create_task(self._serve_stores(), name="kwise shared stores"),
        ]

    async def close(self) -> None:
        """Store what is pending, for at most a second, and disconnect."""
        if not self._tasks:
            return
        look_ups, stores = self._tasks
        self._tasks = []
        await asyncio.sleep(0)  # rewards that have just been decided are put now
        self._is_closing = True
        self._store_arrived.set()
        await asyncio.wait([stores], timeout=_CLOSE_S)
        for task in (look_ups, stores):
            task.cancel()
        await asyncio.gather(look_ups, stores, return_exceptions=True)
        for batch in {*self._batch_of.values()}:
            batch.answer.set_result(None)
        self._batch_of.clear()
        self._drop(self._pending.values())
        self._pending.clear()
        await asyncio.gather(self.reader.close(), self.writer.close())

    # Look-ups

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
        if not keys or not self.reader.is_usable or not self._tasks:
            return LookedUp(unanswered=len(keys))
        batches = {key: self._batch_of.get(key) or self._add(key) for key in keys}
        answers = {batch.answer for batch in batches.values()}
        await asyncio.wait(answers, timeout=self.limits.look_up_s)
        rewards: dict[bytes, StoredReward] = {}
        elsewhere: set[bytes] = set()
        unanswered = 0
        for key, batch in batches.items():
            answer = batch.answer.result() if batch.answer.done() else None
            if answer is None:
                unanswered += 1
            elif key in answer.rewards:
                rewards[key] = answer.rewards[key]
            elif key in answer.elsewhere:
                elsewhere.add(key)
        return LookedUp(rewards=rewards, elsewhere=elsewhere, unanswered=unanswered)

    def _add(self, key: bytes) -> _Batch:
        if not self._batches or len(self._batches[-1].keys) >= _MAX_BATCH:
            self._batches.append(_Batch())
        batch = self._batches[-1]
        batch.keys.append(key)
        self._batch_of[key] = batch
        self._look_up_arrived.set()
        return batch

    async def _serve_look_ups(self) -> None:
        while True:
            if not self._batches:
                self._look_up_arrived.clear()
                await self._look_up_arrived.wait()
            batch = self._batches.popleft()
            answer = await self._answer(batch.keys)
            for key in batch.keys:
                del self._batch_of[key]
            batch.answer.set_result(answer)

    async def _answer(self, keys: Sequence[bytes]) -> LookedUp | None:
        names = [KEY_PREFIX + key for key in keys]
        values = await self.reader.run(lambda redis: _mget(redis, names))
        if values is None:
            return None
        looked_up = LookedUp()
        missing = self._sort(zip(keys, values, strict=True), looked_up)
        if missing and self.limits.claim_s:
            replies = await self.reader.run(lambda redis: self._send_claims(redis, missing))
            if replies is not None:
                values = self._without_refusals("claims", replies)
                self._sort(zip(missing, values, strict=True), looked_up)
        return looked_up

    def _sort(self, values: Iterable[tuple[bytes, Any]], looked_up: LookedUp) -> list[bytes]:
        """Put the values of keys into `looked_up`, and return the keys that have none.

        A value that is not a record was not written under this key by this version. This server
        computes the reward and overwrites it.
        """
        missing = []
        for key, value in values:
            record = self._records.parse(key, value)
            if isinstance(record, StoredReward):
                looked_up.rewards[key] = record
            elif isinstance(record, Claim):
                if value != self._claim and self.limits.claim_s:
                    looked_up.elsewhere.add(key)
            elif record is RUBBISH:
                self._counters.shared_rubbish += 1
            else:
                missing.append(key)
        return missing

    async def _send_claims(self, redis: "Redis", keys: Sequence[bytes]) -> list[Any]:
        """Claim rewards. Each reply is None, or what another server has put there meanwhile."""
        pipeline = redis.pipeline(transaction=False)
        for key in keys:
            pipeline.set(
                KEY_PREFIX + key, self._claim, nx=True, get=True, px=int(1000 * self.limits.claim_s)
            )
        return await pipeline.execute(raise_on_error=False)

    # Stores

    def put(self, key: bytes, reward: StoredReward) -> None:
        """Store a reward in the background, which also ends the claim."""
        self._put(key, self._records.reward_record(key, reward))

    def release(self, key: bytes) -> None:
        """Give up the claim of a reward that this server does not compute after all."""
        if self.limits.claim_s:
            self._put(key, None)

    def _put(self, key: bytes, record: bytes | None) -> None:
        is_full = len(self._pending) >= _MAX_PENDING
        if is_full or not self.writer.is_usable or self._is_closing:
            self._drop([record])
            return
        self._pending[key] = record
        self._store_arrived.set()

    async def _serve_stores(self) -> None:
        while True:
            if not self._pending:
                if self._is_closing:
                    return
                self._store_arrived.clear()
                await self._store_arrived.wait()
                continue
            entries = list(islice(self._pending.items(), _MAX_BATCH))
            for key, _ in entries:
                del self._pending[key]
            await self._store(entries)

    async def _store(self, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        records = [record for _, record in entries]
        try:
            replies = await self.writer.run(lambda redis: self._send_stores(redis, entries))
        except asyncio.CancelledError:
            self._drop(records)
            raise
        accepted: list[Any] = [None] * len(records)
        if replies is not None:
            accepted = self._without_refusals("stores", replies)
        pairs = list(zip(records, accepted, strict=True))
        self._drop(record for record, reply in pairs if reply is None)
        self._counters.shared_stored += sum(
            record is not None and reply is not None for record, reply in pairs
        )

    async def _send_stores(
        self, redis: "Redis", entries: Sequence[tuple[bytes, bytes | None]]
    ) -> list[Any]:
        pipeline = redis.pipeline(transaction=False)
        for key, record in entries:
            if record is None:
                pipeline.delete(KEY_PREFIX + key)
            else:
                pipeline.set(KEY_PREFIX + key, record, ex=self.limits.ttl_s or None)
        return await pipeline.execute(raise_on_error=False)

    def _drop(self, records: Iterable[bytes | None]) -> None:
        self._counters.shared_dropped += sum(record is not None for record in records)

    def _without_refusals(self, what: str, replies: Sequence[Any]) -> list[Any]:
        """Replace errors by None, count them once for the round trip, and log a new one once.

        Redis refuses to store if it is a replica, if its memory is full, or if the user may not.
        Look-ups go on, so the link stays usable.
        """
        refusal = next((reply for reply in replies if isinstance(reply, Exception)), None)
        reason = "" if refusal is None else cause_of(refusal)
        if reason and reason != self._refusals.get(what):
            _LOG.warning("the shared cache refuses %s: %s", what, reason)
        self._refusals[what] = reason
        self._counters.shared_errors += refusal is not None
        return [None if isinstance(reply, Exception) else reply for reply in replies]


async def _mget(redis: "Redis", names: Sequence[bytes]) -> list[Any]:
    values: Any = await redis.mget(names)
    if not isinstance(values, list) or len(values) != len(names):
        raise ValueError(f"the reply to MGET of {len(names)} keys has another form")
    return values


def check_redis_installed(option: str) -> None:
    """Raise ConfigError if the package redis is missing."""
    if find_spec("redis") is None:
        raise ConfigError(f"{option} needs the package redis: {how_to_install('redis')}")
