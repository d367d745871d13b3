"""The layouts of a batch: how token sequences become a graph's inputs, and its outputs rewards.

`LAYOUTS` is the one table of layouts. A trie batch has one row per distinct prefix and can take
prefixes from the prompt cache; a padded batch has one row of tokens per sequence, as Optimum's
stock export reads it. The same graph is run for one sequence at a time if the model's rewards
depend on padding or on the other sequences of a batch.

Dimensions: B sequences, T rows, P past entries, W the width of a layer's keys or values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact import GraphContract, Manifest
from kwise.engine.model.batch_builder import (
    BatchBuilder,
    PaddedBatchBuilder,
    SeparateBatchBuilder,
    TrieBatchBuilder,
)
from kwise.engine.model.packing import Packed, pack
from kwise.engine.model.prefix_cache import PromptCache, Segment, States
from kwise.engine.model.prefix_reuse import Reuse, cache_prompts, plan_reuse
from kwise.engine.model.runtime.protocol import Graph, Shape
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.model.slot_cache import Reservation, SlotCache
from kwise.engine.sequence import EncodedSequence

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A batch whose pass can start at once.

    run: runs the graph and caches new prompts. It is called once. It calls its argument when the
        graph is about to run. A batch that is prepared from then on can reuse the prompts that this
        one caches, if they stay on the device.
    reuse: what the batch takes from the prompt cache; None if the layout does not use it.
    """

    run: "Callable[[Callable[[], None]], Pass]"
    reuse: Reuse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The result of one batch.

    rewards: raw, float32[B], in the batch's order.
    num_rows: token rows that were computed, padding included.
    num_reused: token rows whose keys and values came from the prompt cache.
    """

    rewards: NDArray[np.float32]
    num_rows: int
    num_reused: int = 0


class Layout(Protocol):
    """The layout of one session's batches.

    pads_sequences: a batch has padding up to its longest sequence.
    bucket: on a GPU, wraps the graph so that it sees few input shapes; None if the layout needs no
        wrapper.
    """

    pads_sequences: ClassVar[bool]
    bucket: ClassVar[Callable[[Graph], Graph] | None]

    def __init__(
        self, manifest: Manifest, contract: GraphContract, inputs: Mapping[str, Shape]
    ) -> None: ...

    @staticmethod
    def new_batch(cached: Sequence[bytes]) -> BatchBuilder:
        """Return an empty batch, which knows what sequences cost in this layout.

        cached: sort keys, ascending, of the prefixes that the session has in its prompt cache.
        """

    def inputs(self, batch: Sequence[EncodedSequence]) -> Arrays:
        """Return the graph's inputs for the batch, with nothing reused and nothing to cache."""

    def prepare(
        self, graph: Graph, batch: Sequence[EncodedSequence], cache: PromptCache
    ) -> Prepared:
        """Do all of a pass but the graph's work: plan what is reused, and lay out the inputs."""


class TrieLayout:
    """One row per distinct prefix; see `kwise.engine.model.packing`."""

    pads_sequences: ClassVar[bool] = False
    bucket: ClassVar[Callable[[Graph], Graph] | None] = BucketedGraph

    def __init__(
        self, manifest: Manifest, contract: GraphContract, inputs: Mapping[str, Shape]
    ) -> None:
        self._contract = contract
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
                new, is_stored = cache_prompts(reuse, [reservation.slots], cache)
                reservation.keep(is_stored)
            started()
            is_finite = False  # the states of a sequence that overflows must not be reused
            try:
                if run_graph is not None:
                    outputs = run_graph()
                else:
                    outputs = graph.run(self._inputs(reuse, packed, reservation))
                rewards = outputs[self._contract.reward_output]
                is_finite = bool(np.isfinite(rewards).all())
            finally:
                if new and not is_finite:
                    assert isinstance(cache, SlotCache)
                    cache.revoke(new)
            if is_finite and not self._has_slots:
                present = [outputs[f"present.{name}"] for name in self._widths]
                cache_prompts(reuse, present, cache)
            num_reused = reuse.trie.num_nodes - packed.num_rows
            return Pass(rewards=_flat(rewards), num_rows=packed.num_rows, num_reused=num_reused)

        return Prepared(run=run, reuse=reuse)

    def _plan(self, batch: Sequence[EncodedSequence], cache: PromptCache) -> Reuse:
        return plan_reuse(
            batch,
            cache,
            self._no_states,
            separate_last_tokens=self._contract.separate_last_tokens,
        )

    def _pack(self, reuse: Reuse) -> Packed:
        return pack(
            reuse.trie,
            self._contract.num_tile_groups,
            reuse.past,
            reuse.num_past,
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


class PaddedLayout:
    """One row of tokens per sequence, padded on the right to the longest. Nothing is reused.

    It needs no shape buckets: its batches are of similar lengths, and a length beyond a model's
    positions is an error.
    """

    pads_sequences: ClassVar[bool] = True
    bucket: ClassVar[Callable[[Graph], Graph] | None] = None

    def __init__(
        self, manifest: Manifest, contract: GraphContract, inputs: Mapping[str, Shape]
    ) -> None:
        self._reward_output = contract.reward_output
        self._pad_token_id = manifest.pad_token_id or 0
        self._names = inputs.keys()

    @staticmethod
    def new_batch(cached: Sequence[bytes]) -> BatchBuilder:
        return PaddedBatchBuilder()

    def inputs(self, batch: Sequence[EncodedSequence]) -> Arrays:
        """Return those of input_ids, attention_mask and token_type_ids that the graph has.

        Each is int64[B, length of the longest sequence].
        """
        shape = (len(batch), max(len(sequence.token_ids) for sequence in batch))
        arrays = {
            "input_ids": np.full(shape, self._pad_token_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, sequence in enumerate(batch):
            length = len(sequence.token_ids)
            arrays["input_ids"][row, :length] = sequence.token_ids
            arrays["attention_mask"][row, :length] = 1
            if sequence.type_ids is not None:
                arrays["token_type_ids"][row, :length] = sequence.type_ids
        return {name: array for name, array in arrays.items() if name in self._names}

    def prepare(
        self, graph: Graph, batch: Sequence[EncodedSequence], cache: PromptCache
    ) -> Prepared:
        inputs = self.inputs(batch)
        run_graph = graph.prepare(inputs)

        def run(started: Callable[[], None]) -> Pass:
            started()
            rewards = run_graph()[self._reward_output]  # float32[B, 1]
            return Pass(rewards=_flat(rewards), num_rows=inputs["input_ids"].size)

        return Prepared(run=run)


class SeparateLayout(PaddedLayout):
    """Each sequence in a run of its own, without padding.

    For models whose reward depends on the batch: BART reads it at the last end-of-sequence token
    and needs the same number of them in all sequences, ConvBERT convolves over the padding.
    """

    pads_sequences: ClassVar[bool] = False

    @staticmethod
    def new_batch(cached: Sequence[bytes]) -> BatchBuilder:
        return SeparateBatchBuilder()

    def prepare(
        self, graph: Graph, batch: Sequence[EncodedSequence], cache: PromptCache
    ) -> Prepared:
        prepare = super().prepare
        prepared = [prepare(graph, [sequence], cache) for sequence in batch]

        def run(started: Callable[[], None]) -> Pass:
            started()
            passes = [each.run(_nothing) for each in prepared]
            return Pass(
                rewards=np.concatenate([each.rewards for each in passes]),
                num_rows=sum(each.num_rows for each in passes),
            )

        return Prepared(run=run)


LAYOUTS: Mapping[str, type[Layout]] = {
    "trie": TrieLayout,
    "padded": PaddedLayout,
    "separate": SeparateLayout,
}
"""The layouts by their name in the manifest."""


def _nothing() -> None:
    pass


def _flat(rewards: NDArray[Any]) -> NDArray[np.float32]:
    """[B] or [B, 1] → float32[B]."""
    return np.asarray(rewards, np.float32).reshape(-1)
