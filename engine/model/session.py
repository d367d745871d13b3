"""One model on one device: token sequences in, raw rewards out, whichever runtime computes them.

A session is synchronous and used by one thread. The two layouts differ only in how a batch becomes the graph's inputs and
in what a batch costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact import Artifact
from kwise.engine.model.packing import pack
from kwise.engine.model.precision import Precision
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.prefix_reuse import Reuse, keep, plan_reuse
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import open_graph
from kwise.engine.sequence import EncodedSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """rewards: raw, float32[B], in the batch's order; num_rows: token rows computed; num_reused: token rows whose keys and
    values came from the prompt cache."""

    rewards: NDArray[np.float32]
    num_rows: int
    num_reused: int = 0


class Session(Protocol):
    """What the batcher runs."""

    runtime: str  # for people: runtime, version, device
    precision: Precision
    prompt_cache: PromptCache

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        """The batch's raw rewards."""


class GraphSession:
    """A graph with what it takes to feed it.

    precision: which of the artifact's graphs. runtime, device, threads, device_memory_bytes: see `open_graph`.
    prompt_cache_bytes: memory for keys and values of recent prompts, see `PromptCache`; the padded layout has no use for it.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        runtime: Runtime = Runtime.AUTO,
        precision: Precision = Precision.FP32,
        threads: int = 0,
        device: str = "cpu",
        device_memory_bytes: int = 0,
        prompt_cache_bytes: int = 0,
    ) -> None:
        self._graph = open_graph(
            artifact.graph_path(precision),
            runtime=runtime,
            precision=precision,
            device=device,
            threads=threads,
            device_memory_bytes=device_memory_bytes,
            trie=artifact.manifest.layout == "trie",
        )
        self._manifest = artifact.manifest
        self.precision = precision
        self._states = {
            name: int(shape[1] or 0)
            for name, shape in self._graph.inputs.items()
            if name.startswith("past.")
        }
        self.prompt_cache = PromptCache(prompt_cache_bytes)
        self.runtime = self._graph.runtime

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        return self._run_trie(batch) if self._manifest.layout == "trie" else self._run_padded(batch)

    def inputs(self, batch: Sequence[EncodedSequence]) -> dict[str, NDArray[Any]]:
        """The graph's inputs for the batch, with nothing reused and nothing to be kept."""
        if self._manifest.layout != "trie":
            return dict(self._padded_inputs(batch)[0])
        reuse = self._plan(batch, PromptCache(0))
        return self._trie_inputs(reuse)[0]

    def _run_trie(self, batch: Sequence[EncodedSequence]) -> Pass:
        reuse = self._plan(batch, self.prompt_cache)
        inputs, num_rows = self._trie_inputs(reuse)
        rewards, *present = self._graph.run(inputs)
        if np.isfinite(
            rewards
        ).all():  # a sequence that overflows must not leave its states to others
            keep(reuse, present, self.prompt_cache)
        return Pass(rewards=rewards, num_rows=num_rows, num_reused=reuse.trie.num_nodes - num_rows)

    def _plan(self, batch: Sequence[EncodedSequence], cache: PromptCache) -> Reuse:
        # int8 computes last rows to more bits: as inner rows of another sequence they would change its reward.
        return plan_reuse(
            batch, cache, list(self._states.values()), own_ends=self.precision is Precision.INT8
        )

    def _trie_inputs(self, reuse: Reuse) -> tuple[dict[str, NDArray[Any]], int]:
        aligned = self.precision is not Precision.FP32  # see `pack`: a last bit may turn a rounding
        packed = pack(
            reuse.trie, self._manifest.num_classes, reuse.past, reuse.num_past, aligned=aligned
        )
        states = dict(zip(self._states, reuse.states, strict=True))
        return packed.arrays | states | {"kept": packed.entries[reuse.kept]}, packed.num_rows

    def _run_padded(self, batch: Sequence[EncodedSequence]) -> Pass:
        inputs, num_rows = self._padded_inputs(batch)
        (logits,) = self._graph.run(inputs)
        return Pass(rewards=np.asarray(logits, np.float32).reshape(-1), num_rows=num_rows)

    def _padded_inputs(
        self, batch: Sequence[EncodedSequence]
    ) -> tuple[dict[str, NDArray[np.int64]], int]:
        """input_ids, attention_mask, token_type_ids: int64[B, longest], padded on the right."""
        shape = (len(batch), max(len(sequence.token_ids) for sequence in batch))
        arrays = {
            "input_ids": np.full(shape, self._manifest.pad_token_id or 0, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, sequence in enumerate(batch):
            length = len(sequence.token_ids)
            arrays["input_ids"][row, :length] = sequence.token_ids
            arrays["attention_mask"][row, :length] = 1
            if sequence.type_ids is not None:
                arrays["token_type_ids"][row, :length] = sequence.type_ids
        return {name: array for name, array in arrays.items() if name in self._graph.inputs}, shape[
            0
        ] * shape[1]
