"""The shared cache answers with what was stored, or in time with nothing, and counts which.

A fault is injected by a proxy before a real redis-server. Each test ends with a healthy look-up.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.records import KEY_PREFIX, RecordFormat, claim_record
from kwise.engine.cache.redis_address import parse_redis_url
from kwise.engine.cache.reward_cache import StoredReward
from kwise.engine.cache.shared_cache import SharedCache, SharedCacheLimits
from tests.redis_server import Proxy, RedisServer, needs_redis, running_proxy, running_redis, until
from tests.servers import PATIENCE_S

pytestmark = needs_redis

NAMESPACE = b"artifact|fp32"
KEYS = [bytes([number]) * 32 for number in range(4)]
A, B, C, D = KEYS


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
async def proxy(tmp_path: Path, redis: RedisServer) -> AsyncIterator[Proxy]:
    async with running_proxy(tmp_path, redis) as running:
        yield running


@asynccontextmanager
async def shared_cache(
    url: str, *, namespace: bytes = NAMESPACE, ttl_s: int = 60, claim_s: float = 0, **options: Any
) -> AsyncIterator[tuple[SharedCache, CacheCounters]]:
    """Run a shared cache, connected, which gives up only when the test tells it to."""
    counters = CacheCounters()
    cache = SharedCache(
        parse_redis_url(url, "--shared-cache"),
        SharedCacheLimits(look_up_s=PATIENCE_S, ttl_s=ttl_s, claim_s=claim_s),
        namespace=namespace,
        counters=counters,
        pause_s=0.01,
        **options,
    )
    cache.writer.limit_s = PATIENCE_S
    cache.start()
    try:
        yield cache, counters
    finally:
        await cache.close()


async def connected(cache: SharedCache) -> None:
    await until(lambda: cache.reader.is_usable and cache.writer.is_usable)


def reward(raw: float) -> StoredReward:
    return StoredReward(raw=raw, tokens=7, dropped_tokens=0, control_tokens=1)


async def store(cache: SharedCache, counters: CacheCounters, **raw_of_key: float) -> None:
    """Store rewards, and wait until Redis has them."""
    expected = counters.shared_stored + len(raw_of_key)
    for name, raw in raw_of_key.items():
        cache.put(globals()[name], reward(raw))
    await until(lambda: counters.shared_stored == expected)


async def assert_healthy(cache: SharedCache, counters: CacheCounters) -> None:
    """Assert that a reward can be stored and found, once the cache is usable again."""
    cache.reader.limit_s = cache.writer.limit_s = PATIENCE_S
    await connected(cache)
    await store(cache, counters, D=4.0)
    hits = counters.shared_hits
    assert (await cache.look_up([D])).rewards == {D: reward(4.0)}
    assert counters.shared_hits == hits + 1


def totals(counters: CacheCounters) -> dict[str, int]:
    """Return the counters that are not 0, without their prefix."""
    return {
        name.removeprefix("shared_"): value
        for name in CacheCounters.__dataclass_fields__
        if (value := getattr(counters, name))
    }


# Rewards


async def test_what_one_server_stores_another_one_finds(redis: RedisServer) -> None:
    async with shared_cache(redis.url) as (first, counted), shared_cache(redis.url) as (other, by):
        await connected(first)
        await connected(other)
        await store(first, counted, A=1.5, B=-2.5)
        looked_up = await other.look_up([A, B, C])
        assert looked_up.rewards == {A: reward(1.5), B: reward(-2.5)}
        assert not looked_up.elsewhere and not looked_up.unanswered
        assert totals(counted) == {"stored": 2}
        assert totals(by) == {"hits": 2, "misses": 1}


@pytest.mark.parametrize("ttl_s", [0, 60])
async def test_a_reward_stays_for_the_time_to_live(redis: RedisServer, ttl_s: int) -> None:
    async with shared_cache(redis.url, ttl_s=ttl_s) as (cache, counters):
        await connected(cache)
        await store(cache, counters, A=1.0)
        with redis.client() as client:
            left_s = client.ttl(KEY_PREFIX + A)
        assert left_s == -1 if ttl_s == 0 else 0 < left_s <= ttl_s


async def test_requests_at_the_same_time_ask_for_a_reward_once(
    redis: RedisServer, proxy: Proxy
) -> None:
    async with shared_cache(proxy.url) as (cache, counters):
        await connected(cache)
        proxy.swallow = True
        before = _num_commands(redis)
        first = asyncio.create_task(cache.look_up([A, B]))
        await asyncio.sleep(0)
        calls = [asyncio.create_task(cache.look_up(keys)) for keys in ([A], [B, C], [C], [D])]
        await until(lambda: bool(proxy._held))
        proxy.deliver_late()
        await asyncio.gather(first, *calls)
        commands = _num_commands(redis)
        assert commands["mget"] - before.get("mget", 0) == 2, "one, and one for all that came then"
        assert totals(counters) == {"misses": 7}


def _num_commands(redis: RedisServer) -> dict[str, int]:
    with redis.client() as client:
        statistics = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in statistics.items()}


async def test_a_long_request_is_looked_up_in_parts(redis: RedisServer) -> None:
    keys = [number.to_bytes(32, "big") for number in range(1300)]
    async with shared_cache(redis.url, claim_s=60) as (cache, counters):
        await connected(cache)
        for number, key in enumerate(keys):
            cache.put(key, reward(number))
        await until(lambda: counters.shared_stored == len(keys))
        looked_up = await cache.look_up([*keys, A])
        assert [looked_up.rewards[key].raw for key in keys] == list(range(1300))
        assert totals(counters) == {"hits": 1300, "misses": 1, "stored": 1300}
        assert _num_commands(redis)["mget"] == 3


# Values that are no rewards


async def test_a_value_that_is_no_reward_of_this_model_is_a_miss_and_is_overwritten(
    redis: RedisServer,
) -> None:
    """Another precision and another version have other keys; here somebody copied the values."""
    other = RecordFormat(b"artifact|int8").reward_record(A, reward(9.0))
    newer = bytearray(RecordFormat(NAMESPACE).reward_record(B, reward(9.0)))
    newer[1] += 1
    with redis.client() as client:
        client.set(KEY_PREFIX + A, other)
        client.set(KEY_PREFIX + B, bytes(newer))
        client.set(KEY_PREFIX + C, b"")
        client.rpush(KEY_PREFIX + D, b"a list")
    async with shared_cache(redis.url, claim_s=60) as (cache, counters):
        await connected(cache)
        looked_up = await cache.look_up([A, B, C])
        assert not looked_up.rewards and not looked_up.elsewhere
        assert totals(counters) == {"misses": 3, "rubbish": 3}
        await store(cache, counters, A=1.0, B=2.0, C=3.0)
        assert len((await cache.look_up([A, B, C])).rewards) == 3
        await assert_healthy(cache, counters)


async def test_a_reply_that_comes_late_is_never_taken_for_another_one(
    redis: RedisServer, proxy: Proxy
) -> None:
    async with shared_cache(proxy.url) as (cache, counters):
        await connected(cache)
        await store(cache, counters, A=1.0, B=2.0)
        proxy.swallow, cache.reader.limit_s = True, 0.01
        assert (await cache.look_up([A])).unanswered == 1
        proxy.deliver_late()
        cache.reader.limit_s = PATIENCE_S
        await connected(cache)
        assert (await cache.look_up([B])).rewards == {B: reward(2.0)}
        assert totals(counters) == {"hits": 1, "unanswered": 1, "timeouts": 1, "stored": 2}


# Redis that is slow, down or broken


async def test_a_redis_that_does_not_answer_delays_one_look_up_and_then_none(
    proxy: Proxy,
) -> None:
    async with shared_cache(proxy.url) as (cache, counters):
        await connected(cache)
        proxy.swallow, cache.reader.limit_s = True, 0.01
        assert (await cache.look_up([A, B])).unanswered == 2
        assert not cache.reader.is_usable
        cache.reader.limit_s = PATIENCE_S  # a look-up that waited now would wait for ever
        for _ in range(3):
            assert (await cache.look_up([C])).unanswered == 1
        assert totals(counters) == {"unanswered": 5, "timeouts": 1}
        proxy.swallow = False
        proxy.cut()
        await assert_healthy(cache, counters)


async def test_a_request_waits_no_longer_than_its_own_limit(proxy: Proxy) -> None:
    """The command before it may take its full time, too."""
    async with shared_cache(proxy.url) as (cache, counters):
        await connected(cache)
        proxy.swallow = True
        first = asyncio.create_task(cache.look_up([A]))
        await until(lambda: bool(proxy._held))
        cache.limits = SharedCacheLimits(look_up_s=0.01, ttl_s=60, claim_s=0)
        assert (await cache.look_up([B])).unanswered == 1
        assert cache.reader.is_usable
        proxy.deliver_late()
        assert (await first).unanswered == 0
        assert totals(counters) == {"misses": 1, "unanswered": 1}
        cache.limits = SharedCacheLimits(look_up_s=PATIENCE_S, ttl_s=60, claim_s=0)
        await assert_healthy(cache, counters)


async def test_a_connection_that_is_cut_is_made_again(proxy: Proxy) -> None:
    async with shared_cache(proxy.url) as (cache, counters):
        await connected(cache)
        proxy.swallow = True
        call = asyncio.create_task(cache.look_up([A]))
        await until(lambda: bool(proxy._held))
        proxy.swallow = False
        proxy.cut()
        assert (await call).unanswered == 1
        assert totals(counters) == {"unanswered": 1, "errors": 1}
        await assert_healthy(cache, counters)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\0\xff\xfe\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$nine\r\n",
        b"*1\r\n$1\r\na\r\n",
        b"*-7\r\n",
        b"+OK\r\n",
        b":1\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-MOVED 1 elsewhere:6379\r\n",
    ],
)
async def test_a_reply_of_rubbish_is_an_error_and_costs_no_reward(
    proxy: Proxy, rubbish: bytes
) -> None:
    async with shared_cache(proxy.url) as (cache, counters):
        await connected(cache)
        proxy.answer = rubbish
        assert (await cache.look_up([A, B])).unanswered == 2
        assert totals(counters) == {"unanswered": 2, "errors": 1}
        proxy.answer = b""
        await assert_healthy(cache, counters)


async def test_a_redis_that_is_not_there_yet_is_found_when_it_comes(redis: RedisServer) -> None:
    redis.stop()
    async with shared_cache(redis.url) as (cache, counters):
        assert (await cache.look_up([A])).unanswered == 1
        cache.put(A, reward(1.0))
        assert totals(counters) == {"unanswered": 1, "dropped": 1}
        redis.start()
        await assert_healthy(cache, counters)


@pytest.mark.parametrize("right", [True, False])
async def test_a_password_opens_the_cache_and_is_not_logged(
    redis: RedisServer, caplog: pytest.LogCaptureFixture, right: bool
) -> None:
    redis.stop()
    redis.start("--requirepass", "geheim/richtig")
    password = "geheim%2Frichtig" if right else "geheim-falsch"
    url = redis.url.replace("unix://", f"unix://default:{password}@")
    with caplog.at_level("INFO"):
        async with shared_cache(url) as (cache, counters):
            if right:
                await assert_healthy(cache, counters)
            else:
                await until(lambda: "WRONGPASS" in caplog.text or "invalid" in caplog.text)
                assert (await cache.look_up([A])).unanswered == 1
                cache.put(A, reward(1.0))
                assert totals(counters) == {"unanswered": 1, "dropped": 1}
                with redis.client(password="geheim/richtig") as client:
                    client.config_set("requirepass", "geheim-falsch")
                await assert_healthy(cache, counters)
    assert "geheim" not in caplog.text


async def test_a_redis_that_restarts_loses_rewards_and_nothing_else(redis: RedisServer) -> None:
    async with shared_cache(redis.url) as (cache, counters):
        await connected(cache)
        await store(cache, counters, A=1.0)
        redis.stop()
        redis.start()
        # redis-py notices the closed connection and makes another one, or the look-up fails.
        looked_up = await cache.look_up([A])
        assert not looked_up.rewards
        assert counters.shared_misses + counters.shared_errors == 1
        assert counters.shared_errors == counters.shared_unanswered
        await assert_healthy(cache, counters)


# Redis that refuses to store


async def test_a_replica_answers_and_refuses_to_store(redis: RedisServer) -> None:
    async with shared_cache(redis.url, claim_s=60) as (cache, counters):
        await connected(cache)
        await store(cache, counters, A=1.0)
        with redis.client() as client:
            client.config_set("replica-serve-stale-data", "yes")
            client.replicaof("127.0.0.1", "1")
        cache.put(B, reward(2.0))
        await until(lambda: counters.shared_dropped == 1)
        looked_up = await cache.look_up([A, B])
        assert looked_up.rewards == {A: reward(1.0)} and not looked_up.elsewhere
        assert totals(counters) == {
            "hits": 1,
            "misses": 1,
            "stored": 1,
            "dropped": 1,
            "errors": 2,  # the store, and the claim
        }
        with redis.client() as client:
            client.replicaof("NO", "ONE")
        await assert_healthy(cache, counters)


async def test_a_redis_that_is_full_answers_and_refuses_to_store(redis: RedisServer) -> None:
    async with shared_cache(redis.url) as (cache, counters):
        await connected(cache)
        await store(cache, counters, A=1.0)
        with redis.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")
        cache.put(B, reward(2.0))
        await until(lambda: counters.shared_dropped == 1)
        assert (await cache.look_up([A, B])).rewards == {A: reward(1.0)}
        assert totals(counters) == {
            "hits": 1, "misses": 1, "stored": 1, "dropped": 1, "errors": 1
        }  # fmt: skip
        with redis.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("maxmemory", "0")
        await assert_healthy(cache, counters)


# Claims


async def test_one_of_two_servers_computes_a_reward_and_the_other_one_knows(
    redis: RedisServer,
) -> None:
    options: dict[str, Any] = {"claim_s": 60}
    async with (
        shared_cache(redis.url, **options) as (first, counted),
        shared_cache(redis.url, **options) as (other, _),
    ):
        await connected(first)
        await connected(other)
        assert not (await first.look_up([A, B])).elsewhere
        assert not (await first.look_up([A])).elsewhere, "its own claim"
        assert (await other.look_up([A, C])).elsewhere == {A}
        await store(first, counted, A=1.0)
        looked_up = await other.ask([A, B])
        assert looked_up.rewards == {A: reward(1.0)} and looked_up.elsewhere == {B}
        first.release(B)
        async with asyncio.timeout(PATIENCE_S):
            while (await other.ask([B])).elsewhere:
                pass
        assert (await first.ask([B])).elsewhere == {B}, "the other server has taken it over"


async def test_a_claim_ends_by_itself(redis: RedisServer) -> None:
    with redis.client() as client:
        client.set(KEY_PREFIX + A, claim_record(b"x" * 16), px=50)
    async with shared_cache(redis.url, claim_s=60) as (cache, _):
        await connected(cache)
        async with asyncio.timeout(PATIENCE_S):
            while (await cache.ask([A])).elsewhere:
                pass
        with redis.client() as client:
            assert 50_000 < client.pttl(KEY_PREFIX + A) <= 60_000


async def test_claims_of_others_are_misses_for_a_server_without_claims(redis: RedisServer) -> None:
    with redis.client() as client:
        client.set(KEY_PREFIX + A, claim_record(b"x" * 16))
    async with shared_cache(redis.url) as (cache, counters):
        await connected(cache)
        assert not (await cache.look_up([A])).elsewhere
        await store(cache, counters, A=1.0)
        assert (await cache.look_up([A])).rewards == {A: reward(1.0)}
        assert totals(counters) == {"hits": 1, "misses": 1, "stored": 1}


# Stores


async def test_stores_beyond_the_bound_are_dropped_and_counted(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwise.engine.cache.stores._MAX_PENDING", 2)
    async with shared_cache(redis.url) as (cache, counters):
        await connected(cache)
        for key in (A, B, C):
            cache.put(key, reward(1.0))
        await until(lambda: counters.shared_stored == 2)
        assert totals(counters) == {"stored": 2, "dropped": 1}
        await assert_healthy(cache, counters)


async def test_what_is_pending_at_the_end_is_stored(redis: RedisServer) -> None:
    async with shared_cache(redis.url) as (cache, counters):
        await connected(cache)
        cache.put(A, reward(1.0))
    assert totals(counters) == {"stored": 1}
    async with shared_cache(redis.url) as (cache, counters):
        await connected(cache)
        assert (await cache.look_up([A])).rewards == {A: reward(1.0)}
        await assert_healthy(cache, counters)
