"""The policy puts each sequence that a request waits for into exactly one batch."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kwise.engine.model.layouts.table import LAYOUTS
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.policy import FairBatching
from kwise.engine.trie import KEY_BYTES, sort_key
from kwise.types import Priority


@dataclass(frozen=True, eq=False)
class Work:
    """A sequence and the flow of the one request that waits for it."""

    tokens: tuple[int, ...]
    flow: Flow
    prompt_tokens: int = 0

    @property
    def cost(self) -> int:
        return len(self.tokens)

    @property
    def sort_key(self) -> bytes:
        return sort_key(np.array(self.tokens, np.int64))

    @property
    def prompt_key(self) -> bytes:
        return self.sort_key[: KEY_BYTES * self.prompt_tokens]


def _work(tokens: list[int], priority: Priority = Priority.INTERACTIVE, client: str = "") -> Work:
    return Work(tuple(tokens), Flow(priority, client))


def _policy(layout: str, max_batch_tokens: int, *works: Work) -> FairBatching[Work]:
    policy: FairBatching[Work] = FairBatching(
        LAYOUTS[layout].new_batch, max_batch_tokens=max_batch_tokens
    )
    for work in works:
        policy.add(work, work.flow)
    return policy


def _prefixes(sequences: Iterable[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {sequence[: n + 1] for sequence in sequences for n in range(len(sequence))}


def _rows(layout: str, batch: list[Work], cached: Iterable[tuple[int, ...]] = ()) -> int:
    sequences = [work.tokens for work in batch]
    if layout == "padded":
        return len(sequences) * max(map(len, sequences))
    return len(_prefixes(sequences) - _prefixes(cached))


def _keys(cached: Iterable[tuple[int, ...]]) -> list[bytes]:
    return sorted(sort_key(np.array(tokens, np.int64)) for tokens in cached)


CACHED = [(9,) * 31, (9,) * 40, (9,) * 32 + (0, 1), (0, 0), (1, 2, 0)]


class PolicyBesideAList(RuleBasedStateMachine):
    """Compares the policy with a plain list of what waits. test_fair_queue.py tests the order."""

    @initialize(layout=st.sampled_from(["trie", "padded"]), max_batch_tokens=st.integers(4, 60))
    def start(self, layout: str, max_batch_tokens: int) -> None:
        self.layout, self.max_batch_tokens = layout, max_batch_tokens
        self.policy = _policy(layout, max_batch_tokens)
        self.waiting: list[Work] = []

    @rule(
        prefix=st.sampled_from([0, 0, 31, 32, 40]),
        suffix=st.lists(st.integers(0, 2), min_size=1, max_size=12),
        priority=st.sampled_from(Priority),
        client=st.sampled_from("ab"),
    )
    def add(self, prefix: int, suffix: list[int], priority: Priority, client: str) -> None:
        work = _work([9] * prefix + suffix, priority, client)
        self.policy.add(work, work.flow)
        self.waiting.append(work)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.waiting:
            work = data.draw(st.sampled_from(self.waiting))
            assert self.policy.remove(work, work.flow)
            assert not self.policy.remove(work, work.flow)
            self.waiting.remove(work)

    @rule(data=st.data(), priority=st.sampled_from(Priority), client=st.sampled_from("ab"))
    def join_and_leave(self, data: st.DataObject, priority: Priority, client: str) -> None:
        if self.waiting:
            work = data.draw(st.sampled_from(self.waiting))
            self.policy.add(work, Flow(priority, client))
            assert not self.policy.remove(work, Flow(priority, client))

    @rule(cached=st.lists(st.sampled_from(CACHED), unique=True))
    def take(self, cached: list[tuple[int, ...]]) -> None:
        batch = self.policy.take(_keys(cached))
        assert bool(batch) == bool(self.waiting)
        assert len(set(batch)) == len(batch)
        assert set(batch) <= set(self.waiting)
        if batch:
            rows = _rows(self.layout, batch, cached)
            largest = 2 * _rows("trie", batch[:1], cached) if self.layout == "trie" else 0
            assert len(batch) == 1 or rows <= max(self.max_batch_tokens, largest)
        self.waiting = [work for work in self.waiting if work not in batch]

    @rule(cached=st.lists(st.sampled_from(CACHED), unique=True), changed=st.booleans())
    def peek_and_take(self, cached: list[tuple[int, ...]], changed: bool) -> None:
        """A peek changes nothing, and what happens after it counts."""
        keys = _keys(cached)
        peeked = self.policy.peek(keys)
        if changed:
            self.add(0, [1, 2], Priority.INTERACTIVE, "a")
            peeked = self.policy.peek(_keys(cached))  # other keys than those of `take`
        batch = self.policy.take(keys)
        assert batch == peeked
        self.waiting = [work for work in self.waiting if work not in batch]

    @rule(data=st.data())
    def peek_without_some(self, data: st.DataObject) -> None:
        excluded = (
            set(data.draw(st.lists(st.sampled_from(self.waiting)))) if self.waiting else set()
        )
        batch = self.policy.peek((), excluded)
        assert set(batch) <= set(self.waiting) - excluded
        assert bool(batch) == bool(set(self.waiting) - excluded)

    @rule()
    def clear(self) -> None:
        assert set(self.policy.clear()) == set(self.waiting)
        self.waiting = []

    @invariant()
    def its_length_is_what_waits(self) -> None:
        if hasattr(self, "policy"):
            assert len(self.policy) == len(self.waiting)
            assert all(work in self.policy for work in self.waiting)


TestPolicyBesideAList = PolicyBesideAList.TestCase


@pytest.mark.parametrize("layout", ["trie", "padded"])
def test_a_sequence_longer_than_a_batch_runs_by_itself(layout: str) -> None:
    policy = _policy(layout, 4)
    long, short = _work([1] * 9), _work([2])
    policy.add(long, long.flow)
    policy.add(short, short.flow)
    assert policy.take() == [long]
    assert policy.take() == [short]


def test_bulk_fills_what_interactive_work_leaves() -> None:
    policy = _policy("trie", 4)
    bulk, interactive = (
        _work([1, 1], Priority.BULK),
        _work([2, 2]),
    )
    policy.add(bulk, bulk.flow)
    policy.add(interactive, interactive.flow)
    assert policy.take() == [interactive, bulk]


def test_a_batch_takes_its_own_priority_before_relatives_of_the_other() -> None:
    prompt = list(range(40))
    policy = _policy("trie", 51)
    first, unrelated = (
        _work([*prompt, 1]),
        _work([50] * 10),
    )
    relative = _work([*prompt, 2], Priority.BULK)
    for work in (first, relative, unrelated):
        policy.add(work, work.flow)
    assert policy.take() == [
        first,
        unrelated,
        relative,
    ]  # larger than a batch, for what the relative shares


def test_one_client_with_a_long_line_leaves_the_next_batch_to_another() -> None:
    policy = _policy("trie", 4)
    for n in range(3000):
        work = _work([n, n], client="greedy")
        policy.add(work, work.flow)
    policy.take()
    modest = _work([9, 9, 9], client="modest")
    policy.add(modest, modest.flow)
    assert modest in [*policy.take(), *policy.take()]


def test_trie_batch_prefers_the_firsts_relatives() -> None:
    policy = _policy("trie", 50)
    prompt = list(range(40))
    tokens = [[*prompt, 1], [50] * 10, [60] * 10, [*prompt, 2], [*prompt, 3]]
    works = [_work(ids) for ids in tokens]
    for work in works:
        policy.add(work, work.flow)
    assert policy.take() == [works[0], works[3], works[4]]
    assert policy.take() == [works[1], works[2]]


def test_responses_to_one_prompt_go_together_whoever_sends_them() -> None:
    """Single responses to 64 prompts, each in a request of its own, took 1.57 times the rows."""
    policy, num_prompts, num_responses = _policy("trie", 160), 16, 5
    opening, works = [1] * 40, []  # a system prompt, longer than what makes two prompts related
    for response in range(num_responses):
        for prompt in range(num_prompts):
            tokens = [*opening, *[100 + prompt] * 20, 200 + response, 300]
            flow = Flow(Priority.INTERACTIVE, f"client {response % 2}")
            works.append(Work(tuple(tokens), flow, prompt_tokens=60))
    for work in works:
        policy.add(work, work.flow)
    batches = []
    while batch := policy.take():
        batches.append(batch)
    split = sum(len({work.prompt_key for work in batch}) for batch in batches) - num_prompts
    assert split < len(batches), "at most the last prompt of a batch goes on in another one"
    assert batches[0][0] is works[0]


def test_padded_batch_prefers_the_firsts_length() -> None:
    policy = _policy("padded", 12)
    works = [_work([1] * length) for length in [4, 1, 4, 6, 5]]
    for work in works:
        policy.add(work, work.flow)
    assert policy.take() == [works[0], works[2], works[1]]
    assert policy.take() == [works[3], works[4]]


@pytest.mark.parametrize("seed", range(5))
def test_padding_is_less_than_a_tenth_of_a_busy_queues_batches(seed: int) -> None:
    """Lengths spread as those of real responses are, about log-normally."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(5.5, 0.6, 600), 10, 2000).astype(int)
    policy = _policy("padded", 4096)
    for length in lengths:
        work = _work([1] * int(length))
        policy.add(work, work.flow)
    batches = []
    while batch := policy.take():
        batches.append(_rows("padded", batch))
    assert sum(lengths) > 0.9 * sum(batches)
    assert np.median(batches) > 2048


def test_what_nobody_waits_for_is_in_no_batch() -> None:
    works = [_work([n]) for n in range(4)]
    policy = _policy("trie", 100, *works)
    policy.remove(works[0], works[0].flow)
    policy.remove(works[2], works[2].flow)
    assert policy.take() == [works[1], works[3]]
    assert policy.take() == []


# Several requests wait for one sequence


def test_a_bulk_sequence_that_an_interactive_request_joins_goes_before_bulk() -> None:
    interactive = [_work([n]) for n in (1, 3)]
    bulk = [_work([10 + n], Priority.BULK) for n in (0, 2, 4)]
    policy = _policy("trie", 1, *interactive, *bulk)
    policy.add(bulk[1], Flow(Priority.INTERACTIVE, ""))
    order = [*interactive, bulk[1], bulk[0], bulk[2]]
    assert [policy.take() for _ in range(5)] == [[work] for work in order]


def test_leaving_what_is_gone_changes_nothing() -> None:
    works = [_work([n]) for n in range(3)]
    policy = _policy("trie", 1, *works)
    assert policy.take() == [works[0]]
    assert not policy.remove(works[0], works[0].flow)
    assert [policy.take() for _ in range(3)] == [[works[1]], [works[2]], []]


def test_what_does_not_fit_an_empty_batch_leaves_it_to_others() -> None:
    """32 long sequences behind a short one ended the search, and left a batch of 100 rows."""
    policy = _policy("trie", 2048)
    for index, length in enumerate([100, *[2000] * 32, *[100] * 40]):
        work = _work([index] * length)
        policy.add(work, work.flow)
    assert len(policy.take()) == 20


def test_a_shared_prompt_is_charged_once() -> None:
    """A client with 32 responses to one prompt got a fourteenth of the model's time."""
    policy = _policy("trie", 2000)
    rows = {"groups": 0, "singles": 0}
    for number in range(12):
        for response in range(32):
            tokens = [number] * 1000 + [2000 + response] * 20
            work = _work(tokens, client="groups")
            policy.add(work, work.flow)
        work = _work([number, *range(100, 1999)], client="singles")
        policy.add(work, work.flow)
    for _ in range(12):
        batch = policy.take()
        rows[batch[0].flow.client] += _rows("trie", batch)
    assert 0.7 < rows["groups"] / rows["singles"] < 1.4


# What the session knows


def test_cached_prefixes_leave_room_for_more() -> None:
    """16 rows, or twice those that the first one has beside what is known."""
    prompt = tuple(range(40))
    for cached, num_taken in (((), 6), ((prompt[:35],), 3), ((prompt,), 4)):
        policy = _policy("trie", 16)
        works = [_work([*prompt, 50 + n, 60, 61, 62]) for n in range(6)]
        for work in works:
            policy.add(work, work.flow)
        taken = policy.take(_keys(cached))
        assert taken == works[:num_taken]


def test_a_batch_of_padded_sequences_knows_no_prefixes() -> None:
    policy = _policy("padded", 12)
    works = [_work([1, 2, 3, 4, n]) for n in range(3)]
    for work in works:
        policy.add(work, work.flow)
    assert policy.take(_keys([(1, 2, 3, 4)])) == works[:2]
