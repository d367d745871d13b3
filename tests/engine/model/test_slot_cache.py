"""A slot is written by one batch at a time, and read only while its segment needs it."""

import gc
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from kwise.engine.model.layouts.protocol import Prepared
from kwise.engine.model.layouts.trie import TrieLayout
from kwise.engine.model.packing import NOT_PAST
from kwise.engine.model.prefix_cache import Segment
from kwise.engine.model.prefix_reuse import Reuse, cache_prompts, is_outdated, plan_reuse
from kwise.engine.model.runtime.protocol import Arrays, Shape
from kwise.engine.model.slot_cache import Reservation, SlotCache
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import Int64
from tests.sum_session import MANIFEST

_NO_SLOTS = [np.empty(0, np.int64)]
# The last three share fewer tokens with the others than a cached prefix has.
_PROMPTS = [np.full(length, token) for token in range(3) for length in (16, 20, 40)]
_PROMPTS += [np.append([token] * 10, [9] * 20) for token in range(3)]


def _prefix_hashes(reuse: Reuse) -> Int64:
    """Return a number that stands for the keys and values of each node: a hash of its prefix."""
    trie = reuse.trie
    return np.array(
        [hash(trie.token_ids[trie.path(node)].tobytes()) for node in range(trie.num_nodes)]
    )


class _Device:
    """A pool, the batch that runs, and the batches that are planned."""

    def __init__(self, num_slots: int) -> None:
        self.cache = SlotCache(num_slots)
        self.pool = np.zeros(num_slots, np.int64)
        self.planned: list[tuple[Sequence[EncodedSequence], Reuse, Reservation | None]] = []
        self.running: tuple[Reuse, Reservation | None, list[Segment]] | None = None

    def plan(self, batch: Sequence[EncodedSequence]) -> None:
        reuse = plan_reuse(batch, self.cache, _NO_SLOTS)
        used = {segment.key for segment, _ in reuse.parts}
        reservation = self.cache.reserve(len(reuse.nodes_to_cache), used)
        reuse = reuse if reservation else reuse.without_caching()
        self.planned.append((batch, reuse, reservation))

    def start(self) -> None:
        """Begin the pass of the batch that was planned first, as a session does."""
        batch, reuse, reservation = self.planned.pop(0)
        if is_outdated(reuse, self.cache):
            self.plan(batch)
            batch, reuse, reservation = self.planned.pop()
        new: list[Segment] = []
        if reservation is not None:
            new = cache_prompts(reuse, [reservation.slots], self.cache)
        self.running = reuse, reservation, new

    def finish(self, *, succeeds: bool) -> None:
        """End the pass that runs, if any: it reads its slots and then writes the new ones."""
        if self.running is None:
            return
        reuse, reservation, new = self.running
        self.running = None
        hashes = _prefix_hashes(reuse)
        past = np.flatnonzero(reuse.past != NOT_PAST)
        (slots,) = reuse.states(_NO_SLOTS)
        read = slots[reuse.past[past]]
        assert (self.pool[read] == hashes[past]).all()
        if reservation is not None:
            assert not set(read.tolist()) & set(reservation.slots.tolist())
            self.pool[reservation.slots] = hashes[reuse.nodes_to_cache] if succeeds else -1
        if not succeeds:
            self.cache.revoke(new)

    def num_free(self) -> int:
        self.cache._take(0)
        free = self.cache._free[: self.cache._num_free].tolist()
        assert len(set(free)) == len(free), "a slot is free twice"
        return len(free)


_BATCHES = st.lists(
    st.tuples(st.sampled_from(range(len(_PROMPTS))), st.integers(0, 5)), min_size=1, max_size=4
)


_STEPS = st.lists(st.tuples(_BATCHES, st.booleans(), st.booleans(), st.booleans()), min_size=1)


@given(st.integers(1, 120), _STEPS)
@settings(max_examples=40)
def test_every_slot_that_a_batch_reads_holds_its_token_however_batches_overlap(
    num_slots: int, steps: list[tuple[list[tuple[int, int]], bool, bool, bool]]
) -> None:
    """A batch may be planned during a pass, and be dropped. A pass may fail."""
    device = _Device(num_slots)
    for prompts, during_pass, succeeds, is_dropped in steps:
        if not during_pass:
            device.finish(succeeds=succeeds)
        device.plan(
            [
                EncodedSequence(
                    token_ids=np.append(_PROMPTS[prompt], [7] * length + [8]),
                    type_ids=None,
                    num_tokens=len(_PROMPTS[prompt]) + length + 1,
                    prompt_tokens=len(_PROMPTS[prompt]),
                )
                for prompt, length in prompts
            ]
        )
        if is_dropped:
            device.planned.clear()
        else:
            device.finish(succeeds=succeeds)
            device.start()
    device.finish(succeeds=True)
    gc.collect()
    segments = device.cache._segments.values()
    num_used = len({slot for segment in segments for slot in segment.states[0].tolist()})
    assert device.num_free() + num_used == num_slots - 1, "no slot is lost"


def test_a_batch_that_is_planned_during_a_pass_reuses_what_the_pass_caches() -> None:
    device = _Device(100)
    batches = [
        [
            EncodedSequence(
                token_ids=np.append(_PROMPTS[2], [last]),
                type_ids=None,
                num_tokens=41,
                prompt_tokens=40,
            )
        ]
        for last in (7, 8)
    ]
    device.plan(batches[0])
    device.start()
    device.plan(batches[1])
    (_, reuse, _) = device.planned[0]
    assert reuse.num_past == 40
    device.finish(succeeds=False)
    assert is_outdated(reuse, device.cache) and not device.cache.prefixes


def test_a_batch_that_is_planned_and_never_runs_frees_its_slots() -> None:
    device = _Device(50)
    sequence = EncodedSequence(
        token_ids=np.arange(30), type_ids=None, num_tokens=30, prompt_tokens=20
    )
    device.plan([sequence])
    assert device.num_free() == 49 - 24
    device.planned.clear()
    assert device.num_free() == 49


def test_a_prompt_that_is_longer_than_the_pool_is_not_cached() -> None:
    device = _Device(20)
    assert not device.cache.has_room_for(20, 0)
    assert device.cache.has_room_for(19, 0)


class _Graph:
    """A graph whose passes return `reward`, or raise it. It records the slots that passes read."""

    runtime = "test"
    outputs: Collection[str] = ("logits",)
    num_slots, slot_bytes = 100, 8
    inputs: Mapping[str, Shape] = dict.fromkeys(("past_slots", "slots_to_cache", "last_rows"), ())

    def __init__(self) -> None:
        self.reward: float | Exception = 0.0
        self.read: list[list[int]] = []

    def run(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        return self.prepare(arrays)()

    def prepare(self, arrays: Arrays) -> Callable[[], dict[str, NDArray[Any]]]:
        def run() -> dict[str, NDArray[Any]]:
            self.read.append(arrays["past_slots"].tolist())
            if isinstance(self.reward, Exception):
                raise self.reward
            return {"logits": np.full((len(arrays["last_rows"]), 1), self.reward, np.float32)}

        return run


@pytest.mark.parametrize("fault", [MemoryError(), math.nan], ids=["error", "nan"])
def test_prompts_enter_the_cache_when_a_pass_starts_and_leave_it_if_the_pass_fails(
    fault: float | Exception,
) -> None:
    graph, cache = _Graph(), SlotCache(100)
    contract = replace(MANIFEST.graphs[Precision.FP32], num_tile_groups=1)
    layout = TrieLayout(MANIFEST, contract, graph.inputs)
    first, second = (
        [
            EncodedSequence(
                token_ids=np.append(_PROMPTS[2], last),
                type_ids=None,
                num_tokens=41,
                prompt_tokens=40,
            )
        ]
        for last in (7, 8)
    )
    prepared: list[Prepared] = []
    for reward in (fault, 0.0):
        graph.reward = reward
        with suppress(MemoryError):
            layout.prepare(graph, first, cache).run(
                lambda: prepared.append(layout.prepare(graph, second, cache))
            )
        during_pass = prepared.pop()
        assert during_pass.reuse is not None and during_pass.reuse.num_past == 40
        assert is_outdated(during_pass.reuse, cache) == (reward is fault)
        assert len(cache) == (0 if reward is fault else 1)
    during_pass.run(lambda: None)
    (segment,) = cache._segments.values()
    assert graph.read[-1] == segment.states[0][:40].tolist()
