"""The queue gives every sequence that somebody waits for to exactly one batch, the oldest first."""

import asyncio
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kwise.engine.conversation import EncodedSequence
from kwise.engine.queue import BULK_DELAY_S, Work, WorkQueue
from kwise.engine.trie import sort_key
from kwise.engine.types import Priority


def _work(
    tokens: list[int], arrival_s: float, future: "asyncio.Future[object]", priority: Priority = Priority.INTERACTIVE
) -> Work:
    token_ids = np.array(tokens, np.int64)
    sequence = EncodedSequence(token_ids=token_ids, type_ids=None, num_tokens=len(tokens))
    return Work(sequence=sequence, group=0, priority=priority, arrival_s=arrival_s, future=future)  # type: ignore[arg-type]


def _tokens(work: Work) -> tuple[int, ...]:
    return tuple(work.sequence.token_ids.tolist())


def _prefixes(sequences: Iterable[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {sequence[: n + 1] for sequence in sequences for n in range(len(sequence))}


def _rows(layout: str, batch: list[Work], cached: Iterable[tuple[int, ...]] = ()) -> int:
    sequences = [_tokens(work) for work in batch]
    if layout == "padded":
        return len(sequences) * max(map(len, sequences))
    return len(_prefixes(sequences) - _prefixes(cached))


def _keys(cached: Iterable[tuple[int, ...]]) -> list[bytes]:
    return sorted(sort_key(np.array(tokens, np.int64)) for tokens in cached)


class QueueKeepsItsPromises(RuleBasedStateMachine):
    """Beside a plain list of what waits, in the order of arrival."""

    @initialize(layout=st.sampled_from(["trie", "padded"]), max_batch_tokens=st.integers(4, 60))
    def start(self, layout: str, max_batch_tokens: int) -> None:
        self.layout, self.max_batch_tokens = layout, max_batch_tokens
        self.loop = asyncio.new_event_loop()
        self.queue = WorkQueue(layout=layout, max_batch_tokens=max_batch_tokens)
        self.now = 0.0
        self.waiting: list[Work] = []
        self.promoted: set[int] = set()
        self.abandoned = 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    @rule(
        prefix=st.sampled_from([0, 0, 31, 32, 40]),
        suffix=st.lists(st.integers(0, 2), min_size=1, max_size=12),
        priority=st.sampled_from(Priority),
        later=st.sampled_from([0.0, 0.5, BULK_DELAY_S, 6.0]),
    )
    def add(self, prefix: int, suffix: list[int], priority: Priority, later: float) -> None:
        self.now += later
        work = _work([9] * prefix + suffix, self.now, self.loop.create_future(), priority)
        self.queue.add(work)
        self.waiting.append(work)

    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        if self.waiting:
            data.draw(st.sampled_from(self.waiting)).future.cancel()

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        if self.waiting:
            works = data.draw(st.lists(st.sampled_from(self.waiting)))
            stranger = self.loop.create_future()
            bulk = [work for work in works if work.priority is Priority.BULK]
            self.queue.promote([stranger, *(work.future for work in works)])
            assert all(work.priority is Priority.INTERACTIVE and work.turn_s == work.arrival_s for work in works)
            self.promoted |= set(map(id, bulk))

    @rule(cached=st.lists(st.sampled_from([(9,) * 31, (9,) * 40, (9,) * 32 + (0, 1), (0, 0), (1, 2, 0)]), unique=True))
    def take(self, cached: list[tuple[int, ...]]) -> None:
        alive = [work for work in self.waiting if not work.future.done()]
        self.abandoned += len(self.waiting) - len(alive)
        batch = self.queue.take(_keys(cached))
        assert bool(batch) == bool(alive)
        assert len(set(map(id, batch))) == len(batch)
        assert set(map(id, batch)) <= set(map(id, alive))
        if batch:
            first = min(work.turn_s for work in alive)
            assert batch[0].turn_s == first
            if id(batch[0]) not in self.promoted:
                like = [work for work in alive if work.priority is batch[0].priority and id(work) not in self.promoted]
                assert batch[0] is next(work for work in like if work.turn_s == first)
            assert len(batch) == 1 or _rows(self.layout, batch, cached) <= self.max_batch_tokens
        self.waiting = [work for work in alive if all(work is not taken for taken in batch)]
        if not self.waiting:
            assert self.queue.num_tokens == 0

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting)
        assert self.queue.num_tokens == sum(len(_tokens(work)) for work in self.waiting)
        assert self.queue.num_abandoned == self.abandoned


TestQueueKeepsItsPromises = QueueKeepsItsPromises.TestCase


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("layout", ["trie", "padded"])
def test_longer_sequence_than_a_batch_runs_by_itself(layout: str, loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout=layout, max_batch_tokens=4)
    long, short = _work([1] * 9, 0, loop.create_future()), _work([1], 1, loop.create_future())
    queue.add(long)
    queue.add(short)
    batch = queue.take()
    # Its own prefix costs a trie nothing, but the batch is over its limit already.
    assert batch == [long]
    assert queue.take() == [short]


@pytest.mark.parametrize(("bulk_waited_s", "bulk_leads"), [(0, False), (BULK_DELAY_S - 0.1, False), (BULK_DELAY_S + 0.1, True)])
def test_bulk_yields_until_its_delay_has_passed(
    bulk_waited_s: float, bulk_leads: bool, loop: asyncio.AbstractEventLoop
) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=2)
    bulk = _work([1, 1], 100.0, loop.create_future(), Priority.BULK)
    interactive = _work([2, 2], 100.0 + bulk_waited_s, loop.create_future())
    queue.add(bulk)
    queue.add(interactive)
    assert queue.take() == [bulk if bulk_leads else interactive]
    assert queue.take() == [interactive if bulk_leads else bulk]


def test_bulk_does_not_starve_under_a_stream_of_interactive_work(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=2)
    bulk = _work([99, 99], 0.0, loop.create_future(), Priority.BULK)
    queue.add(bulk)
    for second in range(20):
        queue.add(_work([second, second], float(second), loop.create_future()))
    batches = [queue.take() for _ in range(21)]
    assert batches.index([bulk]) in (5, 6)


def test_bulk_fills_what_interactive_work_leaves(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=4)
    bulk, interactive = _work([1, 1], 0, loop.create_future(), Priority.BULK), _work([2, 2], 0, loop.create_future())
    queue.add(bulk)
    queue.add(interactive)
    assert queue.take() == [interactive, bulk]


def test_trie_batch_prefers_the_firsts_relatives(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=50)
    prompt = list(range(40))
    works = [
        _work(tokens, second, loop.create_future())
        for second, tokens in enumerate([[*prompt, 1], [50] * 10, [60] * 10, [*prompt, 2], [*prompt, 3]])
    ]
    for work in works:
        queue.add(work)
    assert queue.take() == [works[0], works[3], works[4]]
    assert queue.take() == [works[1], works[2]]


def test_padded_batch_prefers_the_firsts_length(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="padded", max_batch_tokens=12)
    works = [_work([1] * length, second, loop.create_future()) for second, length in enumerate([4, 1, 4, 6, 5])]
    for work in works:
        queue.add(work)
    assert queue.take() == [works[0], works[2], works[1]]
    assert queue.take() == [works[3], works[4]]


def test_abandoned_work_is_skipped_and_counted(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=100)
    works = [_work([n], n, loop.create_future()) for n in range(4)]
    for work in works:
        queue.add(work)
    works[0].future.cancel()
    works[2].future.cancel()
    assert queue.take() == [works[1], works[3]]
    assert queue.num_abandoned == 2
    assert queue.take() == []


# What another request waits for too


def test_promoted_work_takes_the_turn_of_its_own_arrival(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=1)
    early, late = (_work([n], n, loop.create_future()) for n in (1, 3))
    bulk = [_work([10 + n], n, loop.create_future(), Priority.BULK) for n in (0, 2, 4)]
    for work in (early, late, *bulk):
        queue.add(work)
    queue.promote([bulk[1].future, bulk[2].future])
    assert [queue.take() for _ in range(5)] == [[early], [bulk[1]], [late], [bulk[2]], [bulk[0]]]


def test_promoting_what_is_gone_or_interactive_already_changes_nothing(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=1)
    works = [_work([n], n, loop.create_future()) for n in range(3)]
    for work in works:
        queue.add(work)
    assert queue.take() == [works[0]]
    queue.promote([work.future for work in works])
    assert [queue.take() for _ in range(3)] == [[works[1]], [works[2]], []]


# What the session knows


def test_cached_prefixes_leave_room_for_more(loop: asyncio.AbstractEventLoop) -> None:
    prompt = tuple(range(40))
    for cached, num_taken in (((), 1), ((prompt[:35],), 2), ((prompt,), 4)):
        queue = WorkQueue(layout="trie", max_batch_tokens=16)
        works = [_work([*prompt, 50 + n, 60, 61, 62], n, loop.create_future()) for n in range(6)]
        for work in works:
            queue.add(work)
        taken = queue.take(_keys(cached))
        assert taken == works[:num_taken]
        assert len(taken) == 1 or _rows("trie", taken, cached) <= 16


def test_a_batch_of_padded_sequences_knows_no_prefixes(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="padded", max_batch_tokens=12)
    works = [_work([1, 2, 3, 4, n], n, loop.create_future()) for n in range(3)]
    for work in works:
        queue.add(work)
    assert queue.take(_keys([(1, 2, 3, 4)])) == works[:2]
