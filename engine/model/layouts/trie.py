"""The trie layout: one row per distinct prefix, and prefixes from the prompt cache.

Dimensions: B sequences, T rows, P past entries, W the width of a layer's keys or values.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from kwise.engine.artifact.manifest import GraphContract, Manifest
from kwise.engine.model.batch_builder import (
    BatchBuilder,
    TrieBatchBuilder,
)
from kwise.engine.model.layouts.protocol import Arrays, Pass, Prepared, rewards_of
from kwise.engine.model.packing import Packed, pack
from kwise.engine.model.prefix_cache import PromptCache, Segment, States
from kwise.engine.model.prefix_reuse import Reuse, cache_prompts, plan_reuse
from kwise.engine.model.runtime.protocol import Graph, Shape
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.model.slot_cache import Reservation, SlotCache
from kwise.engine.sequence import EncodedSequence


class TrieLayout:
    """One row per distinct prefix; see `kwise.engine.model.packing`."""

    pads_sequences: ClassVar[bool] = False
    bucket: ClassVar[Callable[[Graph], Graph] | None] = BucketedGraph

    def __init__(
        self, manifest: Manifest, contract: GraphContract, inputs: Mapping[str, Shape]
    ) -> None:
        self._contract = contract
        self._num_members = manifest.num_members
        self._response_header = manifest.response_header or None
        self._names = inputs.keys()
        self._has_slots = "past_slots" in inputs
        # W of each layer's keys and values. The input `past.NAME` has the output `present.NAME`.
        self._widths = {
            name.removeprefix("past."): int(shape[1] or 0)
            for name, shape in inputs.items()
            if name.startswith("past.")
        }
        self._no_states: States = (
            [np.empty(0, np.int64)]
            if self._has_slots
            else [np.empty((0, width), np.float32) for width in self._widths.values()]
        )

    @staticmethod
    def new_batch(cached: Sequence[bytes]) -> BatchBuilder:
        return TrieBatchBuilder(cached)

    def inputs(self, batch: Sequence[EncodedSequence]) -> Arrays:
        reuse = self._plan(batch, PromptCache(0))
        return self._inputs(reuse, self._pack(reuse), None)

    def prepare(
        self, graph: Graph, batch: Sequence[EncodedSequence], cache: PromptCache
    ) -> Prepared:
        reuse = self._plan(batch, cache)
        reservation = None
        if self._has_slots and len(reuse.nodes_to_cache):
            assert isinstance(cache, SlotCache)
            used = {segment.key for segment, _ in reuse.parts}
            reservation = cache.reserve(len(reuse.nodes_to_cache), used)
            if reservation is None:
                reuse = reuse.without_caching()
        packed = self._pack(reuse)
        # States in host memory are joined when the pass starts: the pass before it may hold as many
        # as the cache has.
        run_graph = None
        if self._has_slots or not reuse.num_past:
            run_graph = graph.prepare(self._inputs(reuse, packed, reservation))

        def run(started: Callable[[], None]) -> Pass:
            new: list[Segment] = []
            if reservation is not None:
                new = cache_prompts(reuse, [reservation.slots], cache)
            started()
            is_finite = False  # the states of a sequence that overflows must not be reused
            try:
                if run_graph is not None:
                    outputs = run_graph()
                else:
                    outputs = graph.run(self._inputs(reuse, packed, reservation))
                of_tokens = rewards_of(outputs[self._contract.reward_output], self._num_members)
                rewards = reuse.read.mean(of_tokens)
                is_finite = bool(np.isfinite(rewards).all())
            finally:
                if new and not is_finite:
                    assert isinstance(cache, SlotCache)
                    cache.revoke(new)
            if is_finite and not self._has_slots:
                present = [outputs[f"present.{name}"] for name in self._widths]
                cache_prompts(reuse, present, cache)
            num_reused = reuse.trie.num_nodes - packed.num_rows
            return Pass(rewards=rewards, num_rows=packed.num_rows, num_reused=num_reused)

        return Prepared(run=run, reuse=reuse)

    def _plan(self, batch: Sequence[EncodedSequence], cache: PromptCache) -> Reuse:
        return plan_reuse(
            batch,
            cache,
            self._no_states,
            response_header=self._response_header,
            separate_last_tokens=self._contract.separate_last_tokens,
        )

    def _pack(self, reuse: Reuse) -> Packed:
        return pack(
            reuse.trie,
            self._contract.num_tile_groups,
            reuse.past,
            reuse.num_past,
            read_nodes=reuse.read.nodes,
            aligned_keys=self._contract.aligned_keys,
        )

    def _inputs(self, reuse: Reuse, packed: Packed, reservation: Reservation | None) -> Arrays:
        """Return the graph's inputs.

        They are those of the arrays of `Packed` that the graph has, and:

        past.NAME: float32[P, W], the reused keys or values of a layer.
        rows_to_cache: int64, the rows whose keys and values the graph returns as `present.NAME`.

        If the graph keeps the cached keys and values, instead of `past.NAME` and `present.NAME`:

        past_slots: int64[P], the slots of the past entries.
        slots_to_cache: int64[rows to cache, 1], the slots of the rows to cache.
        """
        rows_to_cache = packed.entries[reuse.nodes_to_cache]
        arrays: Arrays = {**packed.arrays, "rows_to_cache": rows_to_cache}
        if self._has_slots:
            (arrays["past_slots"],) = reuse.states(self._no_states)
            slots = reservation.slots if reservation else np.empty(0, np.int64)
            arrays["slots_to_cache"] = slots[:, None]
        else:
            names = [f"past.{name}" for name in self._widths]
            arrays |= dict(zip(names, reuse.states(self._no_states), strict=True))
        return {name: array for name, array in arrays.items() if name in self._names}
