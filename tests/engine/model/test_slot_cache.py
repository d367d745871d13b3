"""A slot is written by one batch at a time, and read only while its segment needs it."""

import gc
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kwise.engine.model.packing import NOT_PAST
from kwise.engine.model.prefix_reuse import Reuse, cache_prompts, plan_reuse
from kwise.engine.model.slot_cache import Reservation, SlotCache
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import Int64

_NO_SLOTS = [np.empty(0, np.int64)]
_PROMPTS = [np.full(length, token) for token in range(3) for length in (16, 20, 40)]


def _prefix_hashes(reuse: Reuse) -> Int64:
    """Return a number that stands for the keys and values of each node: a hash of its prefix."""
    trie = reuse.trie
    return np.array(
        [hash(trie.token_ids[trie.path(node)].tobytes()) for node in range(trie.num_nodes)]
    )


class _Device:
    """A pool and the batches that are planned for it but have not run."""

    def __init__(self, num_slots: int) -> None:
        self.cache = SlotCache(num_slots)
        self.pool = np.zeros(num_slots, np.int64)
        self.planned: list[tuple[Reuse, Reservation | None]] = []

    def plan(self, batch: Sequence[EncodedSequence]) -> None:
        reuse = plan_reuse(batch, self.cache, _NO_SLOTS)
        used = {segment.key for segment, _ in reuse.parts}
        reservation = self.cache.reserve(len(reuse.nodes_to_cache), used)
        self.planned.append((reuse if reservation else reuse.without_caching(), reservation))

    def run(self, *, succeeds: bool) -> None:
        """Run the batch that was planned first: read its slots, then write the new ones."""
        reuse, reservation = self.planned.pop(0)
        hashes = _prefix_hashes(reuse)
        past = np.flatnonzero(reuse.past != NOT_PAST)
        (slots,) = reuse.states(_NO_SLOTS)
        read = slots[reuse.past[past]]
        assert (self.pool[read] == hashes[past]).all()
        if reservation is not None:
            assert not set(read.tolist()) & set(reservation.slots.tolist())
            self.pool[reservation.slots] = hashes[reuse.nodes_to_cache]
            if succeeds:
                reservation.keep(cache_prompts(reuse, [reservation.slots], self.cache))

    def num_free(self) -> int:
        free = [slot for slots in self.cache._free for slot in slots.tolist()]
        assert len(set(free)) == len(free), "a slot is free twice"
        return len(free)


_BATCHES = st.lists(
    st.tuples(st.sampled_from(range(len(_PROMPTS))), st.integers(0, 5)), min_size=1, max_size=4
)


@given(
    st.integers(1, 120),
    st.lists(st.tuples(_BATCHES, st.booleans(), st.booleans()), min_size=1, max_size=12),
)
@settings(max_examples=150)
def test_every_slot_that_a_batch_reads_holds_its_token_however_batches_overlap(
    num_slots: int, steps: list[tuple[list[tuple[int, int]], bool, bool]]
) -> None:
    """Up to two batches are planned before the first runs; some fail; the pool may be too small."""
    device = _Device(num_slots)
    for prompts, runs_at_once, succeeds in steps:
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
        if runs_at_once or len(device.planned) == 2:
            device.run(succeeds=succeeds)
    while device.planned:
        device.run(succeeds=True)
    gc.collect()
    segments = device.cache._segments.values()
    num_used = sum(len(segment.states[0]) for segment in segments)
    assert device.num_free() + num_used == num_slots - 1, "no slot is lost"


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
