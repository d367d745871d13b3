"""A wrapper for trie graphs on GPUs that pads the inputs to sizes that repeat.

ONNX Runtime plans the memory of a pass once it has seen all input shapes before, and never frees a
plan, and a CUDA graph is captured for one shape, so shapes must be few. A CPU gains nothing from
this and would pay for the padding. docs/gpu.md has the rules for the sizes and what the padding
costs.

Dimensions: T rows; P past entries; R rows that the head reads; n tiles, S queries and L keys each.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwise.engine.model.runtime.protocol import Graph, Shape

Array = NDArray[Any]
# The smallest size above 0 of T, L, P and rows_to_cache: below it a GPU is idle anyway.
_MIN_SIZE = 64
# Up to here the launches bound the pass of a small model, so that a few more rows cost little.
_FEW_ROWS = 2048
_QUERY_STEP = 32


def round_up(size: int, minimum: int, steps: int) -> int:
    """Round `size` up to one of `steps` evenly spaced sizes per doubling, from `minimum` on.

    The sizes are `minimum` times 1, 1 + 1/steps, … 2, 2 + 2/steps, … 4, … . 0 stays 0.
    """
    if size == 0:
        return 0
    octave = minimum
    while 2 * octave < size:
        octave *= 2
    step = max(octave // steps, 1)
    return octave + -(-max(size - octave, 0) // step) * step


def rows_bucket(num_rows: int) -> int:
    """Return the padded number of rows: up to 25 % more until `_FEW_ROWS`, and up to 6 % above."""
    return round_up(num_rows, _MIN_SIZE, 4 if num_rows <= _FEW_ROWS else 16)


class BucketedGraph:
    """A trie graph for CUDA with padded inputs; has the `Graph` interface."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.runtime = graph.runtime
        self.inputs: Mapping[str, Shape] = graph.inputs
        self.outputs: Collection[str] = graph.outputs
        self.num_slots, self.slot_bytes = graph.num_slots, graph.slot_bytes
        self._sizes: dict[tuple[int, ...], _Sizes] = {}
        self._growing = Lock()  # two threads may prepare batches

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return self.prepare(arrays)()

    def prepare(self, arrays: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        run = self.graph.prepare(self.pad(arrays))
        num_rewards = len(arrays["last_rows"])
        return lambda: {name: rewards[:num_rewards] for name, rewards in run().items()}

    def pad(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return the inputs of the trie graph (see `TrieLayout`), padded.

        Padding rows are token 0 at position 0, and get the result of row 0's attention. They are
        among no tile's keys, and their results are not read.
        """
        num_rows, num_entries = len(arrays["input_ids"]), len(arrays["positions"])
        queries, keys = arrays["queries.0"], arrays["keys.0"]
        num_keys = (keys >= 0).sum(1)  # int64[n]
        rows = rows_bucket(num_rows)
        max_keys = round_up(int(num_keys.max()), _MIN_SIZE, 2)
        past = round_up(num_entries - num_rows, _MIN_SIZE, 1)
        rows_to_cache = round_up(len(arrays["rows_to_cache"]), _MIN_SIZE, 1)
        sizes = self._grow(
            (rows, max_keys, past, rows_to_cache),
            _Sizes(
                rows_read=round_up(len(arrays["last_rows"]), 8, 1),
                tiles=round_up(len(queries), 4, 4),
                queries=-(-queries.shape[1] // _QUERY_STEP) * _QUERY_STEP,
            ),
        )
        padded: dict[str, Array] = {}
        for name in arrays.keys() & {"positions", "preorder", "subtree_end"}:
            of_rows, of_past = arrays[name][:num_rows], arrays[name][num_rows:]
            padded[name] = np.concatenate([_pad_rows(of_rows, rows), _pad_rows(of_past, past)])
        padded_queries = np.zeros((sizes.tiles, sizes.queries), np.int64)
        padded_queries[: len(queries)] = queries[:, :1]
        padded_queries[: len(queries), sizes.queries - queries.shape[1] :] = queries
        # Padding tiles have one key, row 0: a softmax needs at least one.
        padded_keys = np.full((sizes.tiles, max_keys), -(rows + past))
        padded_keys[:, 0] = 0
        # Past entries follow the rows.
        keys = np.where(keys < num_rows, keys, keys + rows - num_rows)[:, :max_keys]
        is_key = np.arange(max_keys) < num_keys[:, None]
        padded_keys[: len(keys)] = keys[:, :1] - (rows + past)
        padded_keys[: len(keys)][is_key] = keys[is_key[:, : keys.shape[1]]]
        tiles, places = np.divmod(arrays["outputs"], queries.shape[1])
        outputs = (tiles + 1) * sizes.queries - queries.shape[1] + places
        padded |= {
            "input_ids": _pad_rows(arrays["input_ids"], rows),
            "last_rows": _pad_rows(arrays["last_rows"], sizes.rows_read),
            "rows_to_cache": _pad_rows(arrays["rows_to_cache"], rows_to_cache),
            # Slot 0 is for padding.
            "past_slots": _pad_rows(arrays["past_slots"], past),
            "slots_to_cache": _pad_rows(arrays["slots_to_cache"], rows_to_cache),
            "queries.0": padded_queries,
            "keys.0": padded_keys,
            "lengths.0": _pad_rows(num_keys, sizes.tiles, 1),
            "outputs": _pad_rows(outputs, rows, int(outputs[0])),
        }
        return {name: padded[name] for name in arrays}

    def _grow(self, bucket: tuple[int, ...], needed: "_Sizes") -> "_Sizes":
        """Return the bucket's sizes, grown if this batch needs more."""
        with self._growing:
            old = self._sizes.get(bucket, needed)
            self._sizes[bucket] = _Sizes(
                rows_read=max(old.rows_read, needed.rows_read),
                tiles=max(old.tiles, needed.tiles),
                queries=max(old.queries, needed.queries),
            )
            return self._sizes[bucket]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """R, n and S."""

    rows_read: int
    tiles: int
    queries: int


def _pad_rows(array: Array, size: int, fill: int = 0) -> Array:
    """Lengthen the first dimension to `size`; return the array itself if it has that size."""
    padding = np.full((size - len(array), *array.shape[1:]), fill, array.dtype)
    return np.concatenate([array, padding]) if len(padding) else array
