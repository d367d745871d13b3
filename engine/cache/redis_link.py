"""A connection to Redis that is given up as soon as it fails, and tried again in the background.

A command that takes longer than its limit, or that fails in any way, makes the link unusable, and
the connection is closed, because a late reply could be taken for that of the next command. Until
the link is usable again, commands return None at once, so a Redis that is slow or down costs the
requests of one moment one limit, and later requests nothing. A task connects again after a pause.
It also sends the first command of each connection, so no request waits for a handshake.

redis-py's own retries are off: they would spend the time of a request.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.redis_address import RedisAddress
from kwise.libraries.errors import cause_of

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

# A connection may take longer than a command: names are resolved, and TLS takes round trips.
_CONNECT_S = 5.0
PAUSE_S = 1.0


class RedisLink:
    """One connection to Redis, used by one task at a time.

    Args:
        address: where Redis is.
        purpose: what the link is for, for the log.
        counters: `shared_timeouts` and `shared_errors` count commands that failed here.
        pause_s: the time between a failure and the next connection.

    Attributes:
        limit_s: the time that a command may take.
        is_usable: False until Redis has answered, and after a failure.
    """

    def __init__(
        self,
        address: RedisAddress,
        purpose: str,
        *,
        limit_s: float,
        counters: CacheCounters,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.limit_s = limit_s
        self.is_usable = False
        self._redis = _new_client(address)
        self._name = f"shared cache {address.shown}, {purpose}"
        self._counters = counters
        self._pause_s = pause_s
        self._failed = asyncio.Event()
        self._reported = ""
        self._refusal = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect in the background, now and after each failure."""
        self._task = asyncio.create_task(self._keep_usable(), name="kwise redis")

    async def close(self) -> None:
        """Close the connection."""
        self.is_usable = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._disconnect()

    async def run(self, command: "Callable[[Redis], Awaitable[_T]]") -> _T | None:
        """Return the result of `command`; None if the link is not usable, or failed just now."""
        if not self.is_usable:
            return None
        try:
            async with asyncio.timeout(self.limit_s):
                return await command(self._redis)
        except TimeoutError:
            self._counters.shared_timeouts += 1
            self._fail(f"no reply within {1000 * self.limit_s:g} ms")
        except Exception as error:  # noqa: BLE001 - bytes that are not a reply can raise anything
            self._counters.shared_errors += 1
            self._fail(cause_of(error))
        return None

    async def run_pipeline(self, queue: "Callable[[Pipeline], object]") -> list[Any] | None:
        """Return the replies to the commands that `queue` adds to a pipeline; None as in `run`.

        A command that Redis refuses has None in place of a reply. Redis refuses to store if it is a
        replica, if its memory is full, or if the user may not. Other commands go on, so the link
        stays usable. The round trip counts as one error.
        """

        async def execute(redis: "Redis") -> list[Any]:
            pipeline = redis.pipeline(transaction=False)
            queue(pipeline)
            return await pipeline.execute(raise_on_error=False)

        replies = await self.run(execute)
        if replies is None:
            return None
        refusal = next((reply for reply in replies if isinstance(reply, Exception)), None)
        reason = "" if refusal is None else cause_of(refusal)
        if reason and reason != self._refusal:
            _LOG.warning("%s: refused: %s", self._name, reason)
        self._refusal = reason
        self._counters.shared_errors += refusal is not None
        return [None if isinstance(reply, Exception) else reply for reply in replies]

    def _fail(self, reason: str) -> None:
        self.is_usable = False
        self._report(reason)
        self._failed.set()

    async def _keep_usable(self) -> None:
        while True:
            try:
                await self._connect()
            except Exception as error:  # noqa: BLE001 - as in `run`
                is_slow = isinstance(error, TimeoutError)
                self._report("no reply in time" if is_slow else cause_of(error))
            else:
                _LOG.info("%s: in use", self._name)
                self._reported = ""
                self._failed.clear()
                self.is_usable = True
                await self._failed.wait()
            await self._disconnect()
            await asyncio.sleep(self._pause_s)

    async def _connect(self) -> None:
        """Connect, and raise an exception unless Redis answers within the limit of a command."""
        async with asyncio.timeout(_CONNECT_S):
            await self._ping()
        async with asyncio.timeout(self.limit_s):
            await self._ping()

    async def _ping(self) -> None:
        if await self._redis.ping() is not True:
            raise ValueError("the reply to PING is not PONG")

    async def _disconnect(self) -> None:
        with suppress(Exception):
            async with asyncio.timeout(_CONNECT_S):
                await self._redis.connection_pool.disconnect()

    def _report(self, reason: str) -> None:
        """Log why the link is not usable, once for each reason."""
        if reason != self._reported:
            self._reported = reason
            _LOG.warning(
                "%s: not usable, and tried again in the background: %s", self._name, reason
            )


def _new_client(address: RedisAddress) -> "Redis":
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        address.url,
        username=address.username,
        password=address.password,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,  # `run` has its own limits
        socket_connect_timeout=_CONNECT_S,
        driver_info=None,  # CLIENT SETINFO, which the user may not be allowed to call
    )
