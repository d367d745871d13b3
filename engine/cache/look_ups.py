"""Look-ups in Redis: many requests, one command at a time.

Look-ups that come while another one is under way are collected and sent as one MGET, so a busy
server sends few commands, and requests that ask for the same reward at the same time ask Redis
once. What Redis does not have is claimed in a second round trip: `SET key claim NX GET PX` marks it
for some seconds, or returns what another server has put there meanwhile.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.records import KEY_PREFIX, RUBBISH, Claim, RecordFormat
from kwise.engine.cache.redis_link import RedisLink
from kwise.engine.cache.reward_cache import StoredReward

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

_LOG = logging.getLogger(__name__)

# Reading a reply of this many values takes a few milliseconds of the event loop.
_MAX_BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp:
    """The answer of the shared cache to a look-up of some rewards.

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


class LookUps:
    """Asks Redis for rewards, and claims those that it does not have.

    Args:
        link: the connection, which nobody else uses.
        records: reads the values.
        claim: the record that names this server.
        claim_s: how long a claim holds; 0 for no claims.
        counters: `shared_rubbish` counts values that are not records.
    """

    def __init__(
        self,
        link: RedisLink,
        records: RecordFormat,
        *,
        claim: bytes,
        claim_s: float,
        counters: CacheCounters,
    ) -> None:
        self._link = link
        self._records = records
        self._claim = claim
        self._claim_ms = round(1000 * claim_s)
        self._counters = counters
        self._batch_of: dict[bytes, _Batch] = {}  # of each key that is being looked up
        self._waiting: deque[_Batch] = deque()  # those that have not been sent yet
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and begin to serve, in the running event loop."""
        self._link.start()
        self._task = asyncio.create_task(self._serve(), name="kwise shared look-ups")

    async def close(self) -> None:
        """Disconnect. Whoever waits gets no answer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for batch in {*self._batch_of.values()}:
            batch.answer.set_result(None)
        self._batch_of.clear()
        await self._link.close()

    async def ask(self, keys: Collection[bytes], limit_s: float) -> LookedUp:
        """Return what Redis tells about `keys` within the limit."""
        if not keys or not self._link.is_usable or self._task is None:
            return LookedUp(unanswered=len(keys))
        batches = {key: self._batch_of.get(key) or self._add(key) for key in keys}
        await asyncio.wait({batch.answer for batch in batches.values()}, timeout=limit_s)
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
        if not self._waiting or len(self._waiting[-1].keys) >= _MAX_BATCH:
            self._waiting.append(_Batch())
        batch = self._waiting[-1]
        batch.keys.append(key)
        self._batch_of[key] = batch
        self._arrived.set()
        return batch

    async def _serve(self) -> None:
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._waiting.popleft()
            try:
                answer = await self._answer(batch.keys)
            except Exception:  # noqa: BLE001 - a bug must not make all later requests wait
                _LOG.exception("a look-up in the shared cache failed")
                answer = None
            for key in batch.keys:
                del self._batch_of[key]
            batch.answer.set_result(answer)

    async def _answer(self, keys: Sequence[bytes]) -> LookedUp | None:
        names = [KEY_PREFIX + key for key in keys]
        values = await self._link.run(lambda redis: _mget(redis, names))
        if values is None:
            return None
        looked_up = LookedUp()
        missing = self._sort(zip(keys, values, strict=True), looked_up)
        if missing and self._claim_ms:
            replies = await self._link.run_pipeline(lambda pipe: self._queue_claims(pipe, missing))
            if replies is not None:
                self._sort(zip(missing, replies, strict=True), looked_up)
        return looked_up

    def _queue_claims(self, pipeline: "Pipeline", keys: Sequence[bytes]) -> None:
        for key in keys:
            name = KEY_PREFIX + key
            pipeline.set(name, self._claim, nx=True, get=True, px=self._claim_ms)

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
                if value != self._claim and self._claim_ms:
                    looked_up.elsewhere.add(key)
            elif record is RUBBISH:
                self._counters.shared_rubbish += 1
            else:
                missing.append(key)
        return missing


async def _mget(redis: "Redis", names: Sequence[bytes]) -> list[Any]:
    values: Any = await redis.mget(names)
    if not isinstance(values, list) or len(values) != len(names):
        raise ValueError(f"the reply to MGET of {len(names)} keys has another form")
    return values
