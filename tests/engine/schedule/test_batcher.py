"""Each submitted sequence gets its own reward or error, whatever happens to the other ones."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwise.engine.model.layouts.padded import PaddedLayout
from kwise.engine.model.layouts.trie import TrieLayout
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.session import Pass
from kwise.engine.precision import Precision
from kwise.engine.schedule.batcher import Batcher
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.in_flight import RewardInFlight
from kwise.engine.schedule.policy import FairBatching
from kwise.engine.sequence import EncodedSequence
from kwise.engine.statistics.counters import Counters
from kwise.engine.trie import sort_key
from kwise.errors import ModelFailed, Overloaded, Unavailable
from kwise.types import Priority
from tests.rewards_in_flight import leave, reward_in_flight
from tests.servers import PATIENCE_S

POISON = 999


def _sequence(*tokens: int) -> EncodedSequence:
    return EncodedSequence(
        token_ids=np.array(tokens, np.int64), type_ids=None, num_tokens=len(tokens)
    )


def _reward(sequence: EncodedSequence) -> float:
    """Depends on every token and its place; small integers, exact in float32."""
    return float(sum((place + 1) * int(token) for place, token in enumerate(sequence.token_ids)))


class FaultySession:
    """A session that raises on `POISON`, waits for `gate`, or returns `missing` too few."""

    precision = Precision.FP32
    runtime = "test"
    prompt_cache = PromptCache(0)

    def __init__(self, *, missing: int = 0) -> None:
        self.missing = missing
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[tuple[int, ...]]] = []
        self.entered = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = lambda: None
    ) -> Callable[[], Pass]:
        return partial(self.run, batch)

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        self.batches.append([tuple(sequence.token_ids.tolist()) for sequence in batch])
        self.loop.call_soon_threadsafe(self.entered.set)
        assert self.gate.wait(PATIENCE_S)
        if any(POISON in sequence.token_ids for sequence in batch):
            raise RuntimeError("poisoned")
        rewards = np.array([_reward(sequence) for sequence in batch], np.float32)
        num_rows = sum(len(sequence.token_ids) for sequence in batch)
        return Pass(rewards=rewards[: len(rewards) - self.missing], num_rows=num_rows)


class Running:
    """A started batcher with what a test looks at."""

    def __init__(
        self, session: FaultySession, max_batch_tokens: int, max_queue_tokens: int
    ) -> None:
        self.session = session
        self.counters = Counters()
        self.policy: FairBatching[RewardInFlight] = FairBatching(
            PaddedLayout.new_batch, max_batch_tokens=max_batch_tokens
        )
        self.batcher = Batcher(
            [session], self.policy, max_queue_tokens=max_queue_tokens, counters=self.counters
        )

    def submit(
        self,
        *sequences: tuple[int, ...],
        priority: Priority = Priority.INTERACTIVE,
        client: str = "",
    ) -> list[RewardInFlight]:
        """Admit and submit a group, as the scorer does."""
        self.batcher.admission.check(sum(map(len, sequences)), client)
        flow = Flow(priority, client)
        rewards = [reward_in_flight(_sequence(*tokens), flow) for tokens in sequences]
        self.batcher.submit(rewards)
        return rewards

    async def hold(self) -> RewardInFlight:
        """Keep the session busy with a sequence of one token, so that what comes next waits."""
        self.session.gate.clear()
        (reward,) = self.submit((5,))
        await asyncio.wait_for(self.session.entered.wait(), PATIENCE_S)
        return reward

    async def settle(self, *rewards: RewardInFlight) -> list[Any]:
        """Return what became of each: its raw reward, its error, or "cancelled"."""
        _, pending = await asyncio.wait([r.future for r in rewards], timeout=PATIENCE_S)
        assert not pending
        return [
            "cancelled" if r.future.cancelled() else r.future.exception() or r.future.result()
            for r in rewards
        ]


@asynccontextmanager
async def _running(
    *, missing: int = 0, max_batch_tokens: int = 64, max_queue_tokens: int = 1000
) -> AsyncIterator[Running]:
    running = Running(FaultySession(missing=missing), max_batch_tokens, max_queue_tokens)
    running.batcher.start()
    try:
        yield running
    finally:
        running.session.gate.set()
        await running.batcher.stop()


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(
        st.lists(
            st.lists(st.integers(0, 99), min_size=1, max_size=9).map(tuple), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=6,
    ),
    poisoned=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 3))),
    max_batch_tokens=st.integers(1, 80),
)
def test_each_sequence_gets_its_own_reward_or_its_own_error(
    groups: list[list[tuple[int, ...]]], poisoned: set[tuple[int, int]], max_batch_tokens: int
) -> None:
    async def scenario() -> None:
        async with _running(max_batch_tokens=max_batch_tokens, max_queue_tokens=10_000) as running:
            sent = [
                [
                    (*tokens, POISON) if (group, place) in poisoned else tokens
                    for place, tokens in enumerate(members)
                ]
                for group, members in enumerate(groups)
            ]
            submitted = [running.submit(*group) for group in sent]
            for group, rewards in zip(sent, submitted, strict=True):
                for tokens, outcome in zip(group, await running.settle(*rewards), strict=True):
                    if POISON in tokens:
                        assert isinstance(outcome, ModelFailed)
                    else:
                        assert outcome == _reward(_sequence(*tokens))
            assert len(running.policy) == running.batcher.admission.num_tokens == 0

    asyncio.run(scenario())


async def test_failing_sequence_leaves_its_neighbours_and_its_siblings_unharmed() -> None:
    """Its siblings once shared its error, and so did whoever had joined one of them."""
    async with _running() as running:
        held = await running.hold()
        rewards = [
            *running.submit((1, 2), (3,)),
            *running.submit((4,), (POISON,)),
            *running.submit((6, 7)),
        ]
        running.session.gate.set()
        assert await running.settle(held) == [5]
        first, second, third, fourth, fifth = await running.settle(*rewards)
        assert (first, second, third, fifth) == (5, 3, 4, 20)
        assert isinstance(fourth, ModelFailed)
        whole = [(1, 2), (6, 7), (3,), (4,), (POISON,)]
        halves = [whole[:2], whole[2:], whole[2:3], whole[3:], whole[3:4], whole[4:]]
        assert running.session.batches[1:] == [whole, *halves]
        assert running.counters.model_passes == 4
        assert await running.settle(*running.submit((8,))) == [8]


async def test_a_failed_batch_is_not_run_again_for_those_who_left() -> None:
    async with _running() as running:
        held = await running.hold()
        (gone,), (poisoned,) = running.submit((1,)), running.submit((POISON,))
        loop = asyncio.get_running_loop()

        def leave_during_the_pass(batch: Sequence[EncodedSequence]) -> Pass:
            # Handled before the pass's own end.
            loop.call_soon_threadsafe(leave, running.batcher, gone)
            return FaultySession.run(running.session, batch)

        running.session.run = leave_during_the_pass  # type: ignore[method-assign]
        running.session.gate.set()
        assert await running.settle(held) == [5]
        assert await running.settle(gone) == ["cancelled"]
        assert isinstance((await running.settle(poisoned))[0], ModelFailed)
        assert [(1,)] not in running.session.batches


async def test_error_tells_nothing_of_the_runtime() -> None:
    async with _running() as running:
        (error,) = await running.settle(*running.submit((POISON,)))
        assert "poisoned" not in str(error)


async def test_full_queue_refuses_and_says_when_to_try_again() -> None:
    async with _running(max_queue_tokens=8) as running:
        held = await running.hold()
        waiting = running.submit((1, 1, 1))
        with pytest.raises(Overloaded) as raised:
            running.submit((2,), (3,))
        assert raised.value.retry_after_s >= 0.05
        assert running.batcher.admission.num_tokens == 3
        fits = running.submit((2,))
        running.session.gate.set()
        assert await running.settle(held, *waiting, *fits) == [5, 6, 2]
        assert running.counters.sequences == 3


async def test_a_client_may_have_as_many_waiting_as_are_left_free() -> None:
    """One that fills the queue would otherwise have everybody else refused."""
    async with _running(max_queue_tokens=12) as running:
        held = await running.hold()
        rewards = [future for _ in range(6) for future in running.submit((1,), client="greedy")]
        with pytest.raises(
            Overloaded, match="6 tokens, 6 of them this client's, and its limit is 12"
        ):
            running.submit((1,), client="greedy")
        for client in ("first", "second"):
            rewards += running.submit((1,), (1,), client=client)
        running.session.gate.set()
        assert await running.settle(held, *rewards) == [5, *[1] * 10]


async def test_a_fault_of_the_queue_fails_what_waits_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The batcher's task ended, and everybody waited for ever."""
    async with _running() as running:
        held = await running.hold()
        with monkeypatch.context() as patch:
            patch.setattr("kwise.engine.schedule.fair_queue.FairQueue.in_order", lambda _: 1 / 0)
            waiting = running.submit((1,), (2,))
            running.session.gate.set()
            first, *others = await running.settle(held, *waiting)
        assert first == 5 and all(isinstance(error, ModelFailed) for error in others)
        assert await running.settle(*running.submit((3,))) == [3]


async def test_time_without_a_pass_counts_only_while_work_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a clock that the test moves."""
    async with _running() as running:
        now_s = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
        await asyncio.sleep(0)
        now_s += 100  # nothing waits
        (first,) = running.submit((1,))
        now_s += 3  # the reward waits until the event loop reaches the batcher
        await first.future
        assert running.counters.idle_with_work_s == 3
        assert running.counters.busy_s == 0
        now_s += 100
        running.session.gate.clear()
        running.session.entered.clear()
        (second,) = running.submit((2,))
        await running.session.entered.wait()
        now_s += 7
        running.session.gate.set()
        await second.future
        assert (running.counters.idle_with_work_s, running.counters.busy_s) == (3, 7)


async def test_group_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    async with _running(max_queue_tokens=4) as running:
        held = await running.hold()
        large = running.submit((1,) * 3, (2,) * 3)
        with pytest.raises(Overloaded):
            running.submit((1,))
        running.session.gate.set()
        assert await running.settle(held, *large) == [5, 6, 12]


async def test_retry_time_grows_with_the_queue() -> None:
    async with _running(max_queue_tokens=1, max_batch_tokens=1) as running:
        held = await running.hold()
        waiting = running.submit((1,) * 100_000)
        with pytest.raises(Overloaded) as raised:
            running.submit((1,))
        assert (
            raised.value.retry_after_s == 10
        )  # 100 s at 1,000 tokens a second, until a pass was timed
        leave(running.batcher, waiting[0])
        running.session.gate.set()
        await running.settle(held)


async def test_cancelled_sequences_never_reach_the_session() -> None:
    async with _running() as running:
        held = await running.hold()
        gone, kept = running.submit((1,), (2,))
        leave(running.batcher, gone)
        running.session.gate.set()
        assert await running.settle(held, gone, kept) == [5, "cancelled", 2]
        assert running.session.batches == [[(5,)], [(2,)]]
        assert running.counters.abandoned == 1


async def test_cancelling_what_runs_harms_nobody() -> None:
    async with _running() as running:
        held = await running.hold()
        leave(running.batcher, held)
        (after,) = running.submit((3,))
        running.session.gate.set()
        assert await running.settle(held, after) == ["cancelled", 3]


async def test_counters_tell_what_was_run() -> None:
    async with _running() as running:
        held = await running.hold()
        rewards = running.submit((1, 2, 3), (4, 5))
        running.session.gate.set()
        await running.settle(held, *rewards)
        counters = running.counters
        assert (
            counters.model_passes,
            counters.sequences,
            counters.unshared_rows,
            counters.rows,
        ) == (2, 3, 6, 6)
        assert counters.reused_rows == 0
        assert counters.rejected_groups == counters.abandoned == 0


async def test_times_are_told_and_not_negative() -> None:
    async with _running() as running:
        held = await running.hold()
        (waited,) = running.submit((1,))
        running.session.gate.set()
        await running.settle(held, waited)
        assert held.model_s > 0
        assert held.queue_s >= 0
        assert waited.queue_s > 0


async def test_too_few_rewards_fail_the_batch_and_misassign_none() -> None:
    """The next batch runs; no request waits forever or gets the reward of another."""
    async with _running(missing=1) as running:
        outcomes = await running.settle(*running.submit((1,), (2,)))
        assert all(isinstance(outcome, ModelFailed) for outcome in outcomes)
        running.session.missing = 0
        assert await running.settle(*running.submit((3,))) == [3]


async def test_session_runs_on_without_a_pause_while_work_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each batch follows the one before it directly: the batcher sets no timer."""
    async with _running(max_batch_tokens=2) as running:
        held = await running.hold()
        rewards = running.submit(*((n, n) for n in range(8)))
        timers: list[Any] = []
        loop = asyncio.get_running_loop()
        schedule = loop.call_at

        def record(*arguments: Any, **named: Any) -> asyncio.TimerHandle:
            timers.append(arguments)
            return schedule(*arguments, **named)

        monkeypatch.setattr(loop, "call_at", record)
        running.session.gate.set()
        await asyncio.gather(*(reward.future for reward in (held, *rewards)))
        assert timers == []
        assert running.session.batches == [[(5,)], *([(n, n)] for n in range(8))]
        # All arrived together, and each starts when the one before it ends.
        for earlier, later in pairwise(rewards):
            assert later.queue_s >= earlier.queue_s


async def test_work_that_arrives_while_the_session_runs_shares_the_next_batch() -> None:
    async with _running() as running:
        held = await running.hold()
        rewards = [future for n in range(4) for future in running.submit((n,))]
        running.session.gate.set()
        await running.settle(held, *rewards)
        assert running.session.batches == [[(5,)], [(0,), (1,), (2,), (3,)]]


async def test_stop_leaves_no_future_undecided() -> None:
    """Neither of what waits nor of what runs: whoever awaits it would wait for ever."""
    async with _running(max_batch_tokens=1) as running:
        held = await running.hold()
        waiting = running.submit((1,), (2,))
        await running.batcher.stop()  # the session is still held: stopping waits for no pass
        for outcome in await running.settle(held, *waiting):
            assert isinstance(outcome, Unavailable)
            assert "shutting down" in str(outcome)


async def test_stop_while_a_failed_batch_is_run_apart_leaves_no_future_undecided() -> None:
    """The groups that had not had their turn were forgotten."""
    async with _running() as running:
        held = await running.hold()
        rewards = [*running.submit((POISON,)), *running.submit((1,)), *running.submit((2,), (3,))]
        apart = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold_what_runs_apart(batch: Sequence[EncodedSequence]) -> Pass:
            if 1 in batch[0].token_ids and len(batch) == 1:
                running.session.gate.clear()
                loop.call_soon_threadsafe(apart.set)
            return FaultySession.run(running.session, batch)

        running.session.run = hold_what_runs_apart  # type: ignore[method-assign]
        running.session.gate.set()
        await running.settle(held)
        await asyncio.wait_for(apart.wait(), PATIENCE_S)
        await running.batcher.stop()
        failed, *left = await running.settle(*rewards)
        assert isinstance(failed, ModelFailed)
        assert all(isinstance(outcome, Unavailable) for outcome in left)


async def test_a_bulk_reward_that_an_interactive_request_joins_goes_before_bulk() -> None:
    async with _running(max_batch_tokens=1) as running:
        held = await running.hold()
        first, second = (
            running.submit((1,), priority=Priority.BULK),
            running.submit((2,), priority=Priority.BULK),
        )
        third = running.submit((3,))
        running.batcher.join(second[0], Flow(Priority.INTERACTIVE, "another"))
        running.session.gate.set()
        await running.settle(held, *first, *second, *third)
        assert running.session.batches == [[(5,)], [(3,)], [(2,)], [(1,)]]


async def test_two_sessions_share_the_queue() -> None:
    first, second = FaultySession(), FaultySession()
    first.gate.clear()
    second.gate.clear()
    policy: FairBatching[RewardInFlight] = FairBatching(PaddedLayout.new_batch, max_batch_tokens=1)
    batcher = Batcher([first, second], policy, max_queue_tokens=100, counters=Counters())
    batcher.start()
    try:
        flow = Flow(Priority.INTERACTIVE, "")
        rewards = [reward_in_flight(_sequence(token), flow) for token in (1, 2)]
        batcher.submit(rewards)
        async with asyncio.timeout(PATIENCE_S):
            await first.entered.wait()
            await second.entered.wait()
            first.gate.set()
            second.gate.set()
            assert await asyncio.gather(*(reward.future for reward in rewards)) == [1, 2]
        assert sorted(first.batches + second.batches) == [[(1,)], [(2,)]]
    finally:
        first.gate.set()
        second.gate.set()
        await batcher.stop()


class KnowingSession(FaultySession):
    """One that has the states of `PROMPT`, and computes only the tokens behind it."""

    PROMPT = tuple(range(20))

    def __init__(self) -> None:
        super().__init__()
        self.prompt_cache = PromptCache(1 << 10)
        self.prompt_cache.put(
            sort_key(np.array(self.PROMPT)), 0, [np.zeros((len(self.PROMPT), 1), np.float32)]
        )

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        passed = super().run(batch)
        num_reused = len(self.PROMPT) * len(batch)
        return Pass(
            rewards=passed.rewards, num_rows=passed.num_rows - num_reused, num_reused=num_reused
        )


async def test_what_the_session_knows_costs_no_rows_and_is_counted() -> None:
    session, counters = KnowingSession(), Counters()
    policy: FairBatching[RewardInFlight] = FairBatching(TrieLayout.new_batch, max_batch_tokens=16)
    batcher = Batcher([session], policy, max_queue_tokens=1000, counters=counters)
    batcher.start()
    try:
        flow = Flow(Priority.INTERACTIVE, "")
        sequences = [_sequence(*session.PROMPT, n, 60, 61, 62) for n in range(30, 36)]
        rewards = [reward_in_flight(sequence, flow) for sequence in sequences]
        batcher.submit(rewards)
        await asyncio.wait_for(asyncio.gather(*(r.future for r in rewards)), PATIENCE_S)
    finally:
        await batcher.stop()
    assert [len(batch) for batch in session.batches] == [4, 2]
    assert (counters.rows, counters.reused_rows, counters.unshared_rows) == (6 * 4, 6 * 20, 6 * 24)
