"""A wrapper for trie graphs on GPUs that pads the inputs to sizes that repeat.

ONNX Runtime plans the memory of a pass once it has seen all input shapes before, and never frees a
plan, so shapes must be few. Its memory-efficient attention needs key lengths divisible by
4. A CPU gains nothing from this and would pay for the padding.

The tile groups of `pack` fit the tiles closely, so two batches hardly ever have the same eight
shapes. Here the tiles are divided anew into three groups: the longest tile's number of keys, a half
and a quarter of it. docs/gpu.md has the rules for the sizes and what the padding costs.

Dimensions: B sequences; T rows; P past entries; n tiles of a group, S queries and L keys each; W
the width of a layer's keys or values.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwise.engine.model.packing import NOT_PAST
from kwise.engine.model.runtime.protocol import Graph, Shape
from kwise.engine.trie import Int64

Array = NDArray[Any]
# The smallest size above 0 of T, L, P and rows_to_cache: below it a GPU is idle anyway.
_MIN_SIZE = 64
# Up to here the launches bound the pass of a small model, so that a few more rows cost little.
_FEW_ROWS = 2048
_QUERY_STEP = 32
# The size of an unused tile group: a multiple of 4 keys, as attention needs.
_UNUSED_SIZE = 8
# How many of the graph's tile groups are used; each has half the keys of the next.
_USED_GROUPS = 3


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
    """A trie graph with padded inputs and outputs that are cut back; has the `Graph` interface."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.runtime = graph.runtime
        self.inputs: Mapping[str, Shape] = graph.inputs
        self.outputs: Collection[str] = graph.outputs
        self._sizes: dict[tuple[int, ...], _Sizes] = {}

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self.graph.run(self.pad(arrays))
        num_rewards, num_states = len(arrays["last_rows"]), len(arrays["rows_to_cache"])
        return {
            name: _cut(array, num_states) if name.startswith("present.") else array[:num_rewards]
            for name, array in outputs.items()
        }

    def pad(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return the inputs of the trie graph (see `TrieLayout`), padded.

        Padding rows are token 0 at position 0 and attend like row 0. No row sees them, because
        their `subtree_end` is 0, and their results are not read.
        """
        num_rows, num_entries = len(arrays["input_ids"]), len(arrays["positions"])
        queries, keys, slots = _join_groups(arrays)
        num_keys = (keys != NOT_PAST).sum(1)  # int64[number of tiles]
        rows = rows_bucket(num_rows)
        max_keys = round_up(int(num_keys.max()), _MIN_SIZE, 2)
        past = round_up(num_entries - num_rows, _MIN_SIZE, 1)
        rows_to_cache = round_up(len(arrays["rows_to_cache"]), _MIN_SIZE, 1)
        # A group's tiles have up to widths[group] keys, ascending; the last group has the longest.
        num_groups = _num_tile_groups(arrays)
        widths = [max_keys >> shift for shift in reversed(range(min(_USED_GROUPS, num_groups)))]
        sizes = self._grow(
            (rows, max_keys, past, rows_to_cache),
            sequences=round_up(len(arrays["last_rows"]), 8, 1),
            queries=-(-queries.shape[1] // _QUERY_STEP) * _QUERY_STEP,
            tiles=np.bincount(np.searchsorted(widths, num_keys), minlength=len(widths)),
        )
        groups = _assign_tiles(num_keys, widths, sizes.tiles)

        padded: dict[str, Array] = {
            name: _pad_rows(state, past, 0)  # float[P, W]
            for name, state in arrays.items()
            if name.startswith("past.")
        } | {
            "input_ids": _pad_rows(arrays["input_ids"], rows, 0),
            "last_rows": _pad_rows(arrays["last_rows"], sizes.sequences, 0),
            "rows_to_cache": _pad_rows(arrays["rows_to_cache"], rows_to_cache, 0),
        }
        for name in ("positions", "preorder", "subtree_end"):
            of_rows, of_past = arrays[name][:num_rows], arrays[name][num_rows:]
            padded[name] = np.concatenate(
                [_pad_rows(of_rows, rows, 0), _pad_rows(of_past, past, 0)]
            )
        keys = np.where(
            keys < num_rows, keys, keys + rows - num_rows
        )  # past entries follow the rows
        starts = np.empty(
            len(queries), np.int64
        )  # of each tile, among the groups' outputs end to end
        offset = 0
        for group, (width, count) in enumerate(zip(widths, sizes.tiles, strict=True)):
            members = np.flatnonzero(groups == group)
            starts[members] = offset + sizes.queries * np.arange(len(members))
            offset += sizes.queries * count
            group_queries, group_keys = _padding_tiles(count, sizes.queries, width)
            group_queries[: len(members), : queries.shape[1]] = queries[members]
            group_keys[: len(members)] = _resize_columns(keys, width)[members]
            padded[f"queries.{group}"], padded[f"keys.{group}"] = group_queries, group_keys
        for group in range(len(widths), num_groups):
            unused = _padding_tiles(1, _UNUSED_SIZE, _UNUSED_SIZE)
            padded[f"queries.{group}"], padded[f"keys.{group}"] = unused
        tiles, places = np.divmod(slots, queries.shape[1])
        padded["outputs"] = _pad_rows(starts[tiles] + places, rows, 0)
        return padded

    def _grow(
        self, bucket: tuple[int, ...], *, sequences: int, queries: int, tiles: Int64
    ) -> "_Sizes":
        """Return the bucket's sizes, grown if this batch needs more.

        Args:
            tiles: int64[used groups], how many tiles have each group as the narrowest that fits.
        """
        old = self._sizes.get(bucket, _Sizes(sequences=0, queries=0, tiles=(0,) * len(tiles)))
        grown, free = list(old.tiles), 0
        for group in reversed(range(len(grown))):
            if tiles[group] > free + grown[group]:
                grown[group] = round_up(int(tiles[group]) - free, 4, 2)
            free += grown[group] - int(tiles[group])
        self._sizes[bucket] = _Sizes(
            sequences=max(old.sequences, sequences),
            queries=max(old.queries, queries),
            tiles=tuple(max(n, 1) for n in grown),
        )
        return self._sizes[bucket]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """B, S, and n of each used group."""

    sequences: int
    queries: int
    tiles: tuple[int, ...]


def _assign_tiles(num_keys: Int64, widths: Sequence[int], capacities: Sequence[int]) -> Int64:
    """Return the group of each tile: the narrowest that has room for it and its keys.

    `_grow` makes the capacities large enough for every tile.
    """
    groups = np.searchsorted(widths, num_keys)
    free = list(capacities)
    for tile in np.argsort(-num_keys, kind="stable"):
        while not free[groups[tile]]:
            groups[tile] += 1
        free[groups[tile]] -= 1
    return groups


def _num_tile_groups(arrays: Mapping[str, Array]) -> int:
    return sum(name.startswith("queries.") for name in arrays)


def _join_groups(arrays: Mapping[str, Array]) -> tuple[Int64, Int64, Int64]:
    """Join all groups into one, without the tiles that no row reads.

    Returns queries int64[n, S], keys int64[n, L], and for each row the place of its result among
    these queries laid end to end, int64[T].
    """
    groups = range(_num_tile_groups(arrays))
    max_queries = max(arrays[f"queries.{group}"].shape[1] for group in groups)
    max_keys = max(arrays[f"keys.{group}"].shape[1] for group in groups)
    queries = np.concatenate(
        [_resize_columns(arrays[f"queries.{group}"], max_queries, 0) for group in groups]
    )
    keys = np.concatenate([_resize_columns(arrays[f"keys.{group}"], max_keys) for group in groups])
    shapes = [arrays[f"queries.{group}"].shape for group in groups]
    # For every position in the groups' outputs: its tile times max_queries, plus its place in the
    # tile.
    starts = np.cumsum([0, *(n for n, _ in shapes)])
    slots = np.concatenate(
        [
            ((start + np.arange(n))[:, None] * max_queries + np.arange(S)).ravel()
            for start, (n, S) in zip(starts, shapes, strict=False)
        ]
    )[arrays["outputs"]]
    tiles, places = np.divmod(slots, max_queries)
    read = np.unique(tiles)  # leaves out the tile of a group that has none
    return queries[read], keys[read], np.searchsorted(read, tiles) * max_queries + places


def _padding_tiles(count: int, num_queries: int, num_keys: int) -> tuple[Int64, Int64]:
    """Return tiles in which row 0 sees itself: a softmax needs at least one key."""
    keys = np.full((count, num_keys), NOT_PAST)
    keys[:, 0] = 0
    return np.zeros((count, num_queries), np.int64), keys


def _pad_rows(array: Array, size: int, fill: int) -> Array:
    """Lengthen the first dimension to `size`; return the array itself if it has that size."""
    padding = np.full((size - len(array), *array.shape[1:]), fill, array.dtype)
    return np.concatenate([array, padding]) if len(padding) else array


def _resize_columns(array: Int64, width: int, fill: int = NOT_PAST) -> Int64:
    """[n, size] → [n, width]. If columns are cut off, they are padding."""
    resized = np.full((len(array), width), fill, np.int64)
    resized[:, : array.shape[1]] = array[:, :width]
    return resized


def _cut(states: Array, size: int) -> Array:
    """Return the first `size` rows.

    Returns a copy if rows are cut off: the prompt cache counts the bytes of what it holds, and a
    view would hold the whole array.
    """
    return states if len(states) == size else states[:size].copy()
