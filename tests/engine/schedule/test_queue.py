"""The queue gives every sequence that somebody waits for to exactly one batch."""

import asyncio
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kwise.engine.schedule.queue import Work, WorkQueue
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import sort_key
from kwise.types import Priority


def _work(
    tokens: list[int],
    future: "asyncio.Future[object]",
    priority: Priority = Priority.INTERACTIVE,
    client: str = "",
) -> Work:
    token_ids = np.array(tokens, np.int64)
    sequence = EncodedSequence(token_ids=token_ids, type_ids=None, num_tokens=len(tokens))
    return Work(sequence=sequence, priority=priority, client=client, arrival_s=0.0, future=future)  # type: ignore[arg-type]


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
    """Beside a plain list of what waits. Whose turn it is, test_turns.py tests."""

    @initialize(layout=st.sampled_from(["trie", "padded"]), max_batch_tokens=st.integers(4, 60))
    def start(self, layout: str, max_batch_tokens: int) -> None:
        self.layout, self.max_batch_tokens = layout, max_batch_tokens
        self.loop = asyncio.new_event_loop()
        self.queue = WorkQueue(layout=layout, max_batch_tokens=max_batch_tokens)
        self.waiting: list[Work] = []

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    @rule(
        prefix=st.sampled_from([0, 0, 31, 32, 40]),
        suffix=st.lists(st.integers(0, 2), min_size=1, max_size=12),
        priority=st.sampled_from(Priority),
        client=st.sampled_from("ab"),
    )
    def add(self, prefix: int, suffix: list[int], priority: Priority, client: str) -> None:
        work = _work([9] * prefix + suffix, self.loop.create_future(), priority, client)
        self.queue.add(work)
        self.waiting.append(work)

    @rule(data=st.data(), is_told=st.booleans())
    def abandon(self, data: st.DataObject, is_told: bool) -> None:
        """The batcher tells the queue a moment after the future was cancelled."""
        if self.waiting:
            work = data.draw(st.sampled_from(self.waiting))
            work.future.cancel()
            if is_told:
                assert self.queue.abandon(work.future)
                assert not self.queue.abandon(work.future)
                self.waiting.remove(work)

    @rule(data=st.data(), priority=st.sampled_from(Priority), client=st.sampled_from("ab"))
    def hasten(self, data: st.DataObject, priority: Priority, client: str) -> None:
        self.queue.hasten(self.loop.create_future(), priority, client)
        if self.waiting:
            self.queue.hasten(data.draw(st.sampled_from(self.waiting)).future, priority, client)

    @rule(
        cached=st.lists(
            st.sampled_from([(9,) * 31, (9,) * 40, (9,) * 32 + (0, 1), (0, 0), (1, 2, 0)]),
            unique=True,
        )
    )
    def take(self, cached: list[tuple[int, ...]]) -> None:
        alive = [work for work in self.waiting if not work.future.done()]
        batch = self.queue.take(_keys(cached))
        assert bool(batch) == bool(alive)
        assert len(set(map(id, batch))) == len(batch)
        assert set(map(id, batch)) <= set(map(id, alive))
        if batch:
            rows = _rows(self.layout, batch, cached)
            most = 2 * _rows("trie", batch[:1], cached) if self.layout == "trie" else 0
            assert len(batch) == 1 or rows <= max(self.max_batch_tokens, most)
        self.waiting = [work for work in self.waiting if work not in batch]

    @rule()
    def clear(self) -> None:
        assert set(map(id, self.queue.clear())) == set(map(id, self.waiting))
        self.waiting = []

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting)
        assert self.queue.num_tokens == sum(len(_tokens(work)) for work in self.waiting)
        for client in "ab":
            assert self.queue.num_tokens_of(client) == sum(
                len(_tokens(w)) for w in self.waiting if w.client == client
            )


TestQueueKeepsItsPromises = QueueKeepsItsPromises.TestCase


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("layout", ["trie", "padded"])
def test_a_sequence_longer_than_a_batch_runs_without_strangers(
    layout: str, loop: asyncio.AbstractEventLoop
) -> None:
    queue = WorkQueue(layout=layout, max_batch_tokens=4)
    long, short = _work([1] * 9, loop.create_future()), _work([2], loop.create_future())
    queue.add(long)
    queue.add(short)
    assert queue.take() == [long]
    assert queue.take() == [short]


def test_bulk_fills_what_interactive_work_leaves(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=4)
    bulk, interactive = (
        _work([1, 1], loop.create_future(), Priority.BULK),
        _work([2, 2], loop.create_future()),
    )
    queue.add(bulk)
    queue.add(interactive)
    assert queue.take() == [interactive, bulk]


def test_a_batch_takes_its_own_priority_before_relatives_of_the_other(
    loop: asyncio.AbstractEventLoop,
) -> None:
    prompt = list(range(40))
    queue = WorkQueue(layout="trie", max_batch_tokens=51)
    first, stranger = (
        _work([*prompt, 1], loop.create_future()),
        _work([50] * 10, loop.create_future()),
    )
    relative = _work([*prompt, 2], loop.create_future(), Priority.BULK)
    for work in (first, relative, stranger):
        queue.add(work)
    assert queue.take() == [
        first,
        stranger,
        relative,
    ]  # larger than a batch, for what the relative shares


def test_one_client_with_a_long_line_leaves_the_next_batch_to_another(
    loop: asyncio.AbstractEventLoop,
) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=4)
    for n in range(3000):
        queue.add(_work([n, n], loop.create_future(), client="greedy"))
    queue.take()
    modest = _work([9, 9, 9], loop.create_future(), client="modest")
    queue.add(modest)
    assert modest in [*queue.take(), *queue.take()]


def test_trie_batch_prefers_the_firsts_relatives(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=50)
    prompt = list(range(40))
    tokens = [[*prompt, 1], [50] * 10, [60] * 10, [*prompt, 2], [*prompt, 3]]
    works = [_work(ids, loop.create_future()) for ids in tokens]
    for work in works:
        queue.add(work)
    assert queue.take() == [works[0], works[3], works[4]]
    assert queue.take() == [works[1], works[2]]


def test_padded_batch_prefers_the_firsts_length(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="padded", max_batch_tokens=12)
    works = [_work([1] * length, loop.create_future()) for length in [4, 1, 4, 6, 5]]
    for work in works:
        queue.add(work)
    assert queue.take() == [works[0], works[2], works[1]]
    assert queue.take() == [works[3], works[4]]


@pytest.mark.parametrize("seed", range(5))
def test_padding_is_less_than_a_tenth_of_a_busy_queues_batches(
    seed: int, loop: asyncio.AbstractEventLoop
) -> None:
    """Lengths spread as those of real responses are, about log-normally."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(5.5, 0.6, 600), 10, 2000).astype(int)
    queue = WorkQueue(layout="padded", max_batch_tokens=4096)
    for length in lengths:
        queue.add(_work([1] * int(length), loop.create_future()))
    batches = []
    while batch := queue.take():
        batches.append(_rows("padded", batch))
    assert sum(lengths) > 0.9 * sum(batches)
    assert np.median(batches) > 2048


def test_abandoned_work_is_skipped(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=100)
    works = [_work([n], loop.create_future()) for n in range(4)]
    for work in works:
        queue.add(work)
    works[0].future.cancel()
    works[2].future.cancel()
    assert queue.take() == [works[1], works[3]]
    assert queue.take() == []
    assert [queue.abandon(work.future) for work in works] == [True, False, True, False]
    assert len(queue) == queue.num_tokens == 0


# What another request waits for too


def test_hastened_work_goes_before_its_clients_other_work(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=1)
    interactive = [_work([n], loop.create_future()) for n in (1, 3)]
    bulk = [_work([10 + n], loop.create_future(), Priority.BULK) for n in (0, 2, 4)]
    for work in (*interactive, *bulk):
        queue.add(work)
    queue.hasten(bulk[1].future, Priority.INTERACTIVE, "")
    assert [queue.take() for _ in range(5)] == [
        [bulk[1]],
        *([work] for work in interactive),
        [bulk[0]],
        [bulk[2]],
    ]


def test_hastening_what_is_gone_changes_nothing(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="trie", max_batch_tokens=1)
    works = [_work([n], loop.create_future()) for n in range(3)]
    for work in works:
        queue.add(work)
    assert queue.take() == [works[0]]
    for work in works:
        queue.hasten(work.future, Priority.INTERACTIVE, "")
    assert [queue.take() for _ in range(3)] == [[works[1]], [works[2]], []]


def test_what_does_not_fit_an_empty_batch_leaves_it_to_others(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """32 long ones in line behind a short one ended the search, and the batch had 100 rows of 2,048."""
    queue = WorkQueue(layout="trie", max_batch_tokens=2048)
    for index, length in enumerate([100, *[2000] * 32, *[100] * 40]):
        queue.add(_work([index] * length, loop.create_future()))
    assert len(queue.take()) == 20


def test_a_shared_prompt_is_charged_once(loop: asyncio.AbstractEventLoop) -> None:
    """A client with 32 responses to a prompt had a fourteenth of the model, beside one that shares nothing."""
    queue = WorkQueue(layout="trie", max_batch_tokens=2000)
    rows = {"groups": 0, "singles": 0}
    for number in range(12):
        for response in range(32):
            queue.add(
                _work(
                    [number] * 1000 + [2000 + response] * 20, loop.create_future(), client="groups"
                )
            )
        queue.add(_work([number, *range(100, 1999)], loop.create_future(), client="singles"))
    for _ in range(12):
        batch = queue.take()
        rows[batch[0].client] += _rows("trie", batch)
    assert 0.7 < rows["groups"] / rows["singles"] < 1.4


# What the session knows


def test_cached_prefixes_leave_room_for_more(loop: asyncio.AbstractEventLoop) -> None:
    """16 rows, or twice those that the first one has beside what is known."""
    prompt = tuple(range(40))
    for cached, num_taken in (((), 6), ((prompt[:35],), 3), ((prompt,), 4)):
        queue = WorkQueue(layout="trie", max_batch_tokens=16)
        works = [_work([*prompt, 50 + n, 60, 61, 62], loop.create_future()) for n in range(6)]
        for work in works:
            queue.add(work)
        taken = queue.take(_keys(cached))
        assert taken == works[:num_taken]


def test_a_batch_of_padded_sequences_knows_no_prefixes(loop: asyncio.AbstractEventLoop) -> None:
    queue = WorkQueue(layout="padded", max_batch_tokens=12)
    works = [_work([1, 2, 3, 4, n], loop.create_future()) for n in range(3)]
    for work in works:
        queue.add(work)
    assert queue.take(_keys([(1, 2, 3, 4)])) == works[:2]
