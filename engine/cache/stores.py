"""Stores in Redis: rewards are stored in the background, many in one pipeline.

Nobody waits for a store. What waits is bounded, and what is beyond the bound, or comes while Redis
is down, is dropped and counted, because a cache may lose entries.
"""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.records import KEY_PREFIX
from kwise.engine.cache.redis_link import RedisLink

if TYPE_CHECKING:
    from redis.asyncio.client import Pipeline

_MAX_BATCH = 512
# Rewards that wait to be stored take about 300 bytes each.
_MAX_PENDING = 65_536
_CLOSE_S = 1.0


class Stores:
    """Puts records into Redis.

    Args:
        link: the connection, which nobody else uses.
        ttl_s: how long a record stays; 0 for as long as Redis has room.
        counters: `shared_stored` and `shared_dropped` count rewards.
    """

    def __init__(self, link: RedisLink, *, ttl_s: int, counters: CacheCounters) -> None:
        self._link = link
        self._ttl_s = ttl_s
        self._counters = counters
        self._pending: dict[bytes, bytes | None] = {}
        self._arrived = asyncio.Event()
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and begin to serve, in the running event loop."""
        self._link.start()
        self._task = asyncio.create_task(self._serve(), name="kwise shared stores")

    async def close(self) -> None:
        """Store what is pending, for at most a second, and disconnect."""
        if self._task is None:
            return
        task, self._task = self._task, None
        await asyncio.sleep(0)  # rewards that have just been decided are put now
        self._is_closing = True
        self._arrived.set()
        await asyncio.wait([task], timeout=_CLOSE_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._drop(self._pending.values())
        self._pending.clear()
        await self._link.close()

    def put(self, key: bytes, record: bytes | None) -> None:
        """Store a record in the background; None deletes what is stored."""
        is_full = len(self._pending) >= _MAX_PENDING
        if is_full or not self._link.is_usable or self._is_closing:
            self._drop([record])
            return
        self._pending[key] = record
        self._arrived.set()

    async def _serve(self) -> None:
        while not (self._is_closing and not self._pending):
            if not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            entries = list(islice(self._pending.items(), _MAX_BATCH))
            for key, _ in entries:
                del self._pending[key]
            await self._store(entries)

    async def _store(self, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        records = [record for _, record in entries]
        try:
            replies = await self._link.run_pipeline(lambda pipeline: self._queue(pipeline, entries))
        except asyncio.CancelledError:
            self._drop(records)
            raise
        accepted: list[Any] = [None] * len(records) if replies is None else replies
        pairs = list(zip(records, accepted, strict=True))
        self._drop(record for record, reply in pairs if reply is None)
        self._counters.shared_stored += sum(
            record is not None and reply is not None for record, reply in pairs
        )

    def _queue(self, pipeline: "Pipeline", entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        for key, record in entries:
            if record is None:
                pipeline.delete(KEY_PREFIX + key)
            else:
                pipeline.set(KEY_PREFIX + key, record, ex=self._ttl_s or None)

    def _drop(self, records: Iterable[bytes | None]) -> None:
        self._counters.shared_dropped += sum(record is not None for record in records)
