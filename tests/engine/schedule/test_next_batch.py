"""The next batch is prepared during a pass, and what the policy decides never depends on it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.model.layouts.table import LAYOUTS
from kwise.engine.model.session import GraphSession, Pass, Session
from kwise.engine.schedule.batcher import Batcher
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.in_flight import RewardInFlight
from kwise.engine.schedule.policy import FairBatching
from kwise.engine.sequence import EncodedSequence
from kwise.engine.statistics.counters import Counters
from kwise.errors import ModelFailed, Unavailable
from kwise.types import Priority
from tests.rewards_in_flight import leave, reward_in_flight
from tests.servers import PATIENCE_S
from tests.sum_session import SumSession

POISON = 9  # on which SumSession fails
Tokens = tuple[int, ...]


class PreparingSession(SumSession):
    """Records what is prepared and which of it runs. Each stage waits for its gate.

    prepared: the batches that were prepared, in order.
    used: the batches that ran as they had been prepared, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.prepared: list[list[Tokens]] = []
        self.used: list[list[Tokens]] = []
        self.preparing = asyncio.Event()  # set once a preparation has begun
        self.running = asyncio.Event()  # set once a pass has begun
        self.may_prepare = threading.Event()
        self.may_prepare.set()
        self.fails_to_prepare = False

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = lambda: None
    ) -> Callable[[], Pass]:
        if "next" not in threading.current_thread().name:  # in the thread of the pass
            return partial(self._run_started, batch, started)
        self.prepared.append([tuple(sequence.token_ids.tolist()) for sequence in batch])
        self.loop.call_soon_threadsafe(self.preparing.set)
        assert self.may_prepare.wait(PATIENCE_S)
        if self.fails_to_prepare:
            raise MemoryError("no memory to prepare a batch")
        return partial(self._run_prepared, batch, started)

    def _run_started(self, batch: Sequence[EncodedSequence], started: Callable[[], None]) -> Pass:
        started()
        # After `started`, so that a test goes on only once the prediction at the start was made.
        self.loop.call_soon_threadsafe(self.running.set)
        return self.run(batch)

    def _run_prepared(self, batch: Sequence[EncodedSequence], started: Callable[[], None]) -> Pass:
        self.used.append([tuple(sequence.token_ids.tolist()) for sequence in batch])
        return self._run_started(batch, started)


def _in_flight(tokens: Tokens, flow: Flow, prompt_tokens: int = 0) -> RewardInFlight:
    sequence = EncodedSequence(
        token_ids=np.array(tokens, np.int64),
        type_ids=None,
        num_tokens=len(tokens),
        prompt_tokens=prompt_tokens,
    )
    return reward_in_flight(sequence, flow)


class Running:
    """A batcher whose sessions are held, and what a test does to it."""

    def __init__(self, sessions: Sequence[Session], layout: str, max_batch_tokens: int) -> None:
        self.counters = Counters()
        self.policy: FairBatching[RewardInFlight] = FairBatching(
            LAYOUTS[layout].new_batch, max_batch_tokens=max_batch_tokens
        )
        self.batcher = Batcher(
            sessions, self.policy, max_queue_tokens=100_000, counters=self.counters
        )

    def submit(
        self, *sequences: Tokens, priority: Priority = Priority.INTERACTIVE, prompt_tokens: int = 0
    ) -> list[RewardInFlight]:
        flow = Flow(priority, "")
        rewards = [_in_flight(tokens, flow, prompt_tokens) for tokens in sequences]
        self.batcher.submit(rewards)
        return rewards


async def _outcomes(*rewards: RewardInFlight) -> list[Any]:
    """Return what became of each: its raw reward, its error, or "cancelled"."""
    _, pending = await asyncio.wait([reward.future for reward in rewards], timeout=PATIENCE_S)
    assert not pending
    return [
        "cancelled" if r.future.cancelled() else r.future.exception() or r.future.result()
        for r in rewards
    ]


async def _happens(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), PATIENCE_S)


@asynccontextmanager
async def _held(
    max_batch_tokens: int = 2, num_sessions: int = 1
) -> AsyncIterator[tuple[Running, list[PreparingSession], list[RewardInFlight]]]:
    """Yield a batcher each of whose sessions is held in a pass of one sequence."""
    sessions = [PreparingSession() for _ in range(num_sessions)]
    running = Running(sessions, "padded", max_batch_tokens)
    for session in sessions:
        session.gate.clear()
    running.batcher.start()
    held = running.submit(*([(5,) * max_batch_tokens] * num_sessions))
    try:
        for session in sessions:
            await _happens(session.running)
        yield running, sessions, held
    finally:
        for session in sessions:
            session.gate.set()
            session.may_prepare.set()
        await running.batcher.stop()


async def test_the_next_batch_is_prepared_during_the_pass_and_then_runs() -> None:
    async with _held() as (running, (session,), held):
        waiting = running.submit((1, 1), (2, 2), (3, 3))
        await _happens(session.preparing)
        assert session.prepared == [[(1, 1)]]
        session.gate.set()
        assert await _outcomes(*held, *waiting) == [10, 2, 4, 6]
        # Each of the others was prepared during the pass before it.
        assert session.prepared == session.used == [[(1, 1)], [(2, 2)], [(3, 3)]]


async def test_an_interactive_request_goes_before_a_batch_that_is_prepared() -> None:
    async with _held() as (running, (session,), held):
        bulk = running.submit((1, 1), priority=Priority.BULK)
        await _happens(session.preparing)
        interactive = running.submit((2, 2))
        session.gate.set()
        assert await _outcomes(*held, *bulk, *interactive) == [10, 2, 4]
        assert session.batches == [[(5, 5)], [(2, 2)], [(1, 1)]]


async def test_what_arrives_during_the_pass_still_joins_the_next_batch() -> None:
    async with _held(max_batch_tokens=4) as (running, (session,), held):
        first = running.submit((1, 1))
        await _happens(session.preparing)
        second = running.submit((2, 2))
        session.gate.set()
        assert await _outcomes(*held, *first, *second) == [20, 2, 4]
        assert session.batches[1:] == [[(1, 1), (2, 2)]]


async def test_a_reward_that_nobody_waits_for_does_not_run_though_it_is_prepared() -> None:
    async with _held(max_batch_tokens=4) as (running, (session,), held):
        gone, stays = running.submit((1, 1), (2, 2))
        await _happens(session.preparing)
        assert session.prepared == [[(1, 1), (2, 2)]]
        leave(running.batcher, gone)
        session.gate.set()
        assert await _outcomes(*held, gone, stays) == [20, "cancelled", 4]
        assert session.batches[1:] == [[(2, 2)]] and session.used == []


async def test_a_preparation_that_fails_costs_nobody_the_reward() -> None:
    async with _held() as (running, (session,), held):
        session.fails_to_prepare = True
        waiting = running.submit((1, 1), (POISON, 1), (2, 2))
        session.gate.set()
        first, second, third, fourth = await _outcomes(*held, *waiting)
        assert (first, second, fourth) == (10, 2, 4) and isinstance(third, ModelFailed)
        assert session.prepared and not session.used


async def test_a_pass_waits_for_its_preparation_and_is_not_prepared_twice() -> None:
    async with _held() as (running, (session,), held):
        session.may_prepare.clear()
        waiting = running.submit((1, 1))
        await _happens(session.preparing)
        session.gate.set()
        assert await _outcomes(*held) == [10]
        assert session.batches == [[(5, 5)]]
        session.may_prepare.set()
        assert await _outcomes(*waiting) == [2]
        assert session.prepared == session.used == [[(1, 1)]]


async def test_another_batch_than_the_predicted_one_does_not_wait_for_its_preparation() -> None:
    async with _held() as (running, (session,), held):
        session.may_prepare.clear()
        bulk = running.submit((1, 1), priority=Priority.BULK)
        await _happens(session.preparing)
        interactive = running.submit((2, 2))
        session.gate.set()
        assert await _outcomes(*held, *interactive) == [10, 4]
        session.may_prepare.set()
        assert await _outcomes(*bulk) == [2]
        assert session.batches == [[(5, 5)], [(2, 2)], [(1, 1)]]


async def test_a_batch_stays_prepared_while_the_one_before_it_runs_in_halves() -> None:
    async with _held(max_batch_tokens=4) as (running, (session,), held):
        failing = running.submit((1, 1), (POISON, 1))
        session.running.clear()
        session.gate.set()
        assert await _outcomes(*held) == [20]
        session.gate.clear()
        waiting = running.submit((2, 2), (3, 3))
        session.gate.set()
        first, second, third, fourth = await _outcomes(*failing, *waiting)
        assert (first, third, fourth) == (2, 4, 6) and isinstance(second, ModelFailed)


async def test_stop_waits_for_no_preparation_and_leaves_no_future_undecided() -> None:
    async with _held() as (running, (session,), held):
        session.may_prepare.clear()
        waiting = running.submit((1, 1), (2, 2))
        await _happens(session.preparing)
        session.gate.set()
        assert await _outcomes(*held) == [10]
        await running.batcher.stop()  # the next pass still waits for its preparation
        assert all(isinstance(outcome, Unavailable) for outcome in await _outcomes(*waiting))


async def test_a_queue_that_fills_one_by_one_is_predicted_few_times() -> None:
    async with _held(max_batch_tokens=1000) as (running, (session,), held):
        rewards = []
        for _ in range(200):
            rewards += running.submit((1, 1))
            session.preparing.clear()
            if len(session.prepared) < 2:
                await asyncio.sleep(0)
        session.gate.set()
        assert await _outcomes(*held, *rewards) == [5000, *[2] * 200]
        assert 1 <= len(session.prepared) <= 9


async def test_sessions_that_share_a_queue_prepare_different_batches() -> None:
    async with _held(num_sessions=2) as (running, sessions, held):
        waiting = running.submit((1, 1), (2, 2))
        for session in sessions:
            await _happens(session.preparing)
        assert [session.prepared for session in sessions] == [[[(1, 1)]], [[(2, 2)]]]
        sessions[0].gate.set()
        assert await _outcomes(held[0], waiting[0]) == [10, 2]
        sessions[1].gate.set()
        assert await _outcomes(held[1], waiting[1]) == [10, 4]
        assert sessions[0].used == [[(1, 1)]]


async def test_a_fault_of_the_queue_in_a_prediction_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with _held() as (running, (session,), held):
        with monkeypatch.context() as patch:
            patch.setattr("kwise.engine.schedule.fair_queue.FairQueue.in_order", lambda _: 1 / 0)
            waiting = running.submit((1, 1))
        session.gate.set()
        assert await _outcomes(*held, *waiting) == [10, 2]


VOCAB = 40
EXACT = 2e-5  # as in tests/engine/model/test_session.py
PROMPTS = [tuple(range(n, n + 24)) for n in (0, 8, 16)] + [tuple(range(20)), (1, 2, 3)]


class SteppedSession(GraphSession):
    """A session whose passes wait for a step that the test allows."""

    steps: threading.Semaphore

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = lambda: None
    ) -> Callable[[], Pass]:
        return partial(self._run_stepped, super().prepare(batch, started))

    def _run_stepped(self, run: Callable[[], Pass]) -> Pass:
        assert self.steps.acquire(timeout=PATIENCE_S)
        return run()


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    return read_artifact(tiny_artifact)


@pytest.fixture(scope="module")
def alone(artifact: Artifact) -> GraphSession:
    return GraphSession(artifact, threads=1)


RESPONSES = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6).map(tuple)
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.tuples(
                st.sampled_from(PROMPTS),
                st.lists(RESPONSES, min_size=1, max_size=3),
                st.sampled_from(Priority),
            ),
        ),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("step"), st.integers(1, 2)),
        st.tuples(st.just("yield"), st.integers(1, 3)),
    ),
    min_size=2,
    max_size=20,
)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    events=EVENTS,
    cache_tokens=st.sampled_from([0, 30, 60, 1000]),
    max_batch_tokens=st.sampled_from([8, 40, 80]),
)
def test_rewards_are_those_of_each_conversation_alone_whatever_arrives_and_leaves(
    artifact: Artifact,
    alone: GraphSession,
    events: list[tuple[str, Any]],
    cache_tokens: int,
    max_batch_tokens: int,
) -> None:
    bytes_per_token = 4 + 4 * sum(alone.layout._widths.values())  # type: ignore[attr-defined]

    async def scenario() -> None:
        session = SteppedSession(
            artifact, threads=1, prompt_cache_bytes=cache_tokens * bytes_per_token
        )
        session.steps = threading.Semaphore(0)
        running = Running([session], "trie", max_batch_tokens)
        running.batcher.start()
        rewards: list[RewardInFlight] = []
        try:
            for kind, value in events:
                if kind == "submit":
                    prompt, responses, priority = value
                    rewards += running.submit(
                        *(prompt + response for response in responses),
                        priority=priority,
                        prompt_tokens=len(prompt),
                    )
                elif kind == "leave" and value < len(rewards):
                    if not rewards[value].future.done():
                        leave(running.batcher, rewards[value])
                elif kind == "step":
                    session.steps.release(value)
                else:
                    for _ in range(value):
                        await asyncio.sleep(0)
            session.steps.release(1000)
            outcomes = await _outcomes(*rewards) if rewards else []
        finally:
            session.steps.release(1000)
            await running.batcher.stop()
        for reward, outcome in zip(rewards, outcomes, strict=True):
            if outcome != "cancelled":
                assert reward.sequence is not None
                (expected,) = alone.run([reward.sequence]).rewards
                assert outcome == pytest.approx(float(expected), abs=EXACT)
        cache = session.prompt_cache
        assert cache.num_bytes == sum(s.num_bytes for s in cache._segments.values())
        assert cache.num_bytes <= cache.max_bytes

    asyncio.run(scenario())
