"""Two scorers that share a Redis compute each reward once, and one that cannot is as it was.

The scorers run in one event loop; `tests/end_to_end/test_shared_cache.py` has two processes.
"""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kwise.engine.artifact.manifest import Member
from kwise.engine.cache.records import KEY_PREFIX, claim_record
from kwise.engine.config import EngineConfig
from kwise.engine.precision import Precision
from kwise.engine.scorer import Scorer
from kwise.engine.server.service import RewardService
from kwise.errors import ConfigError, ModelFailed, Overloaded, Unavailable
from kwise.types import Reward, ScoredGroup
from tests.redis_server import RedisServer, needs_redis, running_proxy, running_redis, until
from tests.servers import PATIENCE_S
from tests.sum_session import (
    MANIFEST,
    POISON,
    MemberSession,
    SumSession,
    entered,
    ids,
    raw,
    sum_scorer,
)

pytestmark = needs_redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"^--shared-cache needs the package redis: pip install"):
        Scorer.load(tmp_path, EngineConfig(shared_cache="redis://cache"))


@asynccontextmanager
async def sharing(
    url: str, session: SumSession | None = None, **options: Any
) -> AsyncIterator[Scorer]:
    """Run a scorer that is connected to Redis, and gives it all the time that it takes."""
    options = {"shared_cache_ms": 60_000, "shared_cache_claim_ms": 600_000, **options}
    async with sum_scorer(session, shared_cache=url, **options) as scorer:
        shared = scorer._caches.shared
        assert shared is not None
        shared.writer.limit_s = PATIENCE_S
        await until(lambda: shared.reader.is_usable and shared.writer.is_usable)
        yield scorer


def raws(scored: ScoredGroup) -> list[float]:
    return [raw(outcome) for outcome in scored.rewards]


def are_cached(scored: ScoredGroup) -> list[bool]:
    return [outcome.cached for outcome in scored.rewards if isinstance(outcome, Reward)]


async def stored(scorer: Scorer, count: int) -> None:
    await until(lambda: scorer.counters.shared_stored == count)


async def test_what_one_server_computed_another_one_has(redis: RedisServer) -> None:
    other_session = SumSession()
    async with sharing(redis.url) as first, sharing(redis.url, other_session) as other:
        assert raws(await first.score(ids(1, 2, 3))) == [3, 4]
        await stored(first, 2)
        scored = await other.score(ids(1, 3, 2, 3))
        assert raws(scored) == [4, 3, 4] and all(are_cached(scored))
        again = await other.score(ids(1, 3))
        assert raws(again) == [4] and all(are_cached(again))
        assert not other_session.batches
        counters = other.counters
        assert (counters.shared_hits, counters.shared_misses, counters.cache_hits) == (2, 0, 3)


async def test_the_members_of_a_reward_are_shared(redis: RedisServer) -> None:
    members = (Member(), Member(mean=1.0), Member(std=2.0))
    manifest = msgspec.structs.replace(MANIFEST, members=members).signed()
    other_session = MemberSession()
    async with (
        sharing(redis.url, MemberSession(), manifest=manifest) as first,
        sharing(redis.url, other_session, manifest=manifest) as other,
    ):
        computed = await first.score(ids(1, 2, 3))
        await stored(first, 2)
        shared = await other.score(ids(1, 2, 3))
    assert not other_session.batches and all(are_cached(shared))
    for ours, theirs in zip(computed.rewards, shared.rewards, strict=True):
        assert isinstance(ours, Reward)
        assert len(ours.members) == 3 and dataclasses.replace(ours, cached=True) == theirs


async def test_requests_at_the_same_time_are_computed_by_one_of_two_servers(
    redis: RedisServer,
) -> None:
    session, other_session = SumSession(), SumSession()
    async with sharing(redis.url, session) as first, sharing(redis.url, other_session) as other:
        session.gate.clear()
        computing = asyncio.create_task(first.score(ids(1, 2, 3)))
        await entered(session)
        waiting = [asyncio.create_task(other.score(ids(1, 3, 2))) for _ in range(2)]
        await until(lambda: other.counters.joined == 2)
        session.gate.set()
        assert raws(await computing) == [3, 4]
        for call in waiting:
            scored = await call
            assert raws(scored) == [4, 3] and all(are_cached(scored))
        assert not other_session.batches
        assert other.counters.shared_joined == 2
        assert other._admission.num_tokens == 0 and not other._in_flight


async def test_servers_whose_groups_overlap_do_not_wait_for_each_other(redis: RedisServer) -> None:
    session, other_session = SumSession(), SumSession()
    async with sharing(redis.url, session) as first, sharing(redis.url, other_session) as other:
        for held in (session, other_session):
            held.gate.clear()
        one = asyncio.create_task(first.score(ids(1, 2)))
        await entered(session)
        two = asyncio.create_task(other.score(ids(1, 2, 3)))
        await entered(other_session)  # with the response that nobody else computes
        three = asyncio.create_task(first.score(ids(1, 4, 3)))
        await until(lambda: len(first._in_flight) == 3)
        session.gate.set()
        other_session.gate.set()
        assert [raws(await call) for call in (one, two, three)] == [[3], [3, 4], [5, 4]]
        assert session.batches == [[(1, 2)], [(1, 4)]]
        assert other_session.batches == [[(1, 3)]]


async def test_a_server_that_dies_with_a_claim_costs_the_others_its_bound(
    redis: RedisServer,
) -> None:
    async with sharing(redis.url, shared_cache_claim_ms=50) as scorer:
        (key,) = await scorer._keys(ids(1, 2))
        with redis.client() as client:
            client.set(KEY_PREFIX + key, claim_record(b"x" * 16), px=600_000)
        assert raws(await scorer.score(ids(1, 2))) == [3]
        assert (scorer.counters.shared_joined, scorer.counters.sequences) == (0, 1)
        await stored(scorer, 1)
        with redis.client() as client:
            assert client.ttl(KEY_PREFIX + key) > 600


@pytest.mark.parametrize("reason", ["cancelled", "refused", "failed", "stopped"])
async def test_a_claim_without_a_reward_is_given_up(redis: RedisServer, reason: str) -> None:
    session, other_session = SumSession(), SumSession()
    async with (
        sharing(redis.url, session, max_queue_tokens=16) as first,
        sharing(redis.url, other_session) as other,
    ):
        session.gate.clear()
        busy = asyncio.create_task(first.score(ids(7, 1)))
        await entered(session)
        response = POISON if reason == "failed" else 2
        if reason == "refused":
            fill = asyncio.create_task(first.score(ids(8, 1, 2, 3)))
            await until(lambda: len(first._in_flight) == 4)
            with pytest.raises(Overloaded):
                await first.score(ids(1, *[response] * 1, *range(3, 9)))
        else:
            call = asyncio.create_task(first.score(ids(1, response)))
            await until(lambda: len(first._in_flight) == 2)
        waiting = asyncio.create_task(other.score(ids(1, response)))
        match reason:
            case "refused":
                session.gate.set()
                await fill
            case "cancelled":
                call.cancel()
                await asyncio.wait([call])
            case "failed":
                session.gate.set()
                with pytest.raises(ModelFailed):
                    await call
            case "stopped":
                await first.stop()
                session.gate.set()
                with pytest.raises(Unavailable):
                    await call
        if reason == "failed":
            with pytest.raises(ModelFailed):
                await waiting
        else:
            assert raws(await waiting) == [3]
        assert other_session.batches == [[(1, response)]]
        session.gate.set()
        await asyncio.gather(busy, return_exceptions=True)


async def test_whoever_leaves_what_another_server_computes_leaves_nothing(
    redis: RedisServer,
) -> None:
    session, other_session = SumSession(), SumSession()
    async with sharing(redis.url, session) as first, sharing(redis.url, other_session) as other:
        session.gate.clear()
        computing = asyncio.create_task(first.score(ids(1, 2)))
        await entered(session)
        gone = asyncio.create_task(other.score(ids(1, 2)))
        await until(lambda: bool(other._in_flight))
        gone.cancel()
        await asyncio.wait([gone])
        assert not other._in_flight and other._admission.num_tokens == 0
        assert other._elsewhere is not None
        await until(lambda: not other._elsewhere._tasks)  # type: ignore[union-attr]
        session.gate.set()
        assert raws(await computing) == [3]
        await stored(first, 1)
        assert raws(await other.score(ids(1, 2))) == [3]
        assert not other_session.batches


async def test_stopping_answers_what_another_server_computes(redis: RedisServer) -> None:
    session = SumSession()
    async with sharing(redis.url, session) as first, sharing(redis.url) as other:
        session.gate.clear()
        computing = asyncio.create_task(first.score(ids(1, 2)))
        await entered(session)
        waiting = asyncio.create_task(other.score(ids(1, 2)))
        await until(lambda: bool(other._in_flight))
        await other.stop()
        with pytest.raises(Unavailable):
            await waiting
        session.gate.set()
        assert raws(await computing) == [3]


async def test_a_request_that_comes_during_a_look_up_joins_it(
    redis: RedisServer, tmp_path: Path
) -> None:
    session = SumSession()
    async with (
        running_proxy(tmp_path, redis) as proxy,
        sharing(proxy.url, session, cache_bytes=0) as scorer,
    ):
        proxy.swallow = True
        calls = [asyncio.create_task(scorer.score(ids(1, 2))) for _ in range(3)]
        await until(lambda: bool(proxy._held))
        assert not scorer._in_flight
        proxy.deliver_late()
        assert [raws(await call) for call in calls] == [[3]] * 3
        assert session.batches == [[(1, 2)]]
        assert (scorer.counters.joined, scorer.counters.shared_misses) == (2, 3)


async def test_a_redis_that_does_not_answer_changes_no_reward(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        running_proxy(tmp_path, redis) as proxy,
        sharing(proxy.url, shared_cache_claim_ms=0) as scorer,
    ):
        shared = scorer._caches.shared
        assert shared is not None
        proxy.swallow, shared.reader.limit_s, shared.writer.limit_s = True, 0.01, 0.01
        assert raws(await scorer.score(ids(1, 2, 3))) == [3, 4]
        await until(lambda: scorer.counters.shared_dropped == 2)
        assert raws(await scorer.score(ids(1, 4))) == [5]
        counters = scorer.counters
        assert (counters.shared_unanswered, counters.shared_timeouts) == (3, 2)
        assert (counters.shared_dropped, counters.shared_stored) == (3, 0)
        shared.reader.limit_s = shared.writer.limit_s = PATIENCE_S
        proxy.swallow = False
        proxy.cut()
        await until(lambda: shared.reader.is_usable and shared.writer.is_usable)
        assert raws(await scorer.score(ids(1, 5))) == [6]
        await stored(scorer, 1)


async def test_rewards_of_another_precision_or_model_are_not_shared(redis: RedisServer) -> None:
    int8 = SumSession()
    int8.precision = Precision.INT8
    changed = msgspec.structs.replace(MANIFEST, reward_mean=7.0).signed()
    async with sharing(redis.url) as first:
        await first.score(ids(1, 2))
        await stored(first, 1)
        for session, manifest in ((int8, MANIFEST), (SumSession(), changed)):
            async with sharing(redis.url, session, manifest=manifest) as other:
                scored = await other.score(ids(1, 2))
                assert are_cached(scored) == [False] and len(session.batches) == 1


async def test_a_request_that_looks_up_while_the_model_is_replaced_is_answered(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Nothing of it is in flight yet, and the old model was closed as soon as nothing was."""
    changed = msgspec.structs.replace(MANIFEST, reward_mean=7.0).signed()
    async with (
        running_proxy(tmp_path, redis) as proxy,
        sharing(proxy.url) as old,
        sharing(redis.url, manifest=changed) as new,
    ):
        service = RewardService([old])
        proxy.swallow = True
        call = asyncio.create_task(service.score(ids(1, 2)))
        await until(lambda: bool(proxy._held))
        swap = asyncio.create_task(service.add(new))
        await asyncio.sleep(0)
        fresh = await service.score(ids(1, 2))
        assert (fresh.fingerprint, are_cached(fresh)) == (changed.fingerprint, [False])
        proxy.deliver_late()
        assert (await call).fingerprint == MANIFEST.fingerprint
        await swap
