"""A graph that sees few shapes: inputs are padded up to sizes that repeat, and what belongs to the padding is cut off.

For GPUs. ONNX Runtime plans a pass's memory in one piece once it has seen all its input shapes before, keeps every such plan
for ever (so shapes must be few), its allocator finds blocks of the right size, and its memory-efficient attention wants key
lengths that divide by 4, else it writes out all scores. A CPU gains nothing and would pay for the padding.

The classes of `pack` fit tiles closely, but two batches hardly ever have the same eight shapes: of 300 random batches of
2,048 rows all differ, however coarsely each size is rounded. So the tiles are dealt out anew, to three classes of the longest
tile's keys, half and a quarter as many, and into a wider class where their own is full; the graph's other classes get one tile
of nothing.

A shape is chosen by what costs most: T and L, P and `kept`. Each is rounded up: T by less than a quarter and L by less than a
half beyond 64, P and `kept` to less than twice beyond 64, while 0 stays 0. Batches of one such choice share B, S and the
numbers of tiles, which grow to the most that any of them had: S in steps of 32, B to less than twice, tiles to less than a half
more. Shapes are at most the choices, times the few steps by which those five can grow. A plan is 8 KB of host memory in a model
of two layers (measured), and in one of 30 some 120 KB.

Of 1,000 batches of about 2,048 rows, of groups of log-normal lengths, 109 had a shape of their own, 15 of them in the second
half; of 8,192 rows 43 and 6. Rows, on which most of the work is done, were padded by 9 % and 7 %, attention's scores 3.2 and
2.9 times, which makes SmolLM2's pass of 2,048 rows 1.3 times the operations and that of a model of width 4,096 1.13 times. That
memory planned and keys aligned win this back is to be measured on a GPU: `make bench-gpu` measures it both ways.

Dimensions: B sequences; T rows; P past entries; C classes; n tiles of a class, S queries of a tile, L keys of a tile; W the
width of a layer's keys or values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwise.engine.model.packing import NOT_PAST
from kwise.engine.model.runtime.protocol import Graph, Shape
from kwise.engine.trie import Int64

Array = NDArray[Any]
# Of T, L, P and kept: below it a GPU is idle anyway.
_SMALLEST = 64
_QUERY_STEP = 32
# What a class without tiles has: a multiple of 4 keys, as attention wants.
_NOTHING = 8
# Of the graph's, each with half the keys of the next.
_USED_CLASSES = 3


def round_up(size: int, smallest: int, steps: int) -> int:
    """The least of `smallest` times 1, 1 + 1/steps, … 2, 2 + 2/steps, … 4, … that is not below `size`; 0 for 0."""
    if size == 0:
        return 0
    octave = smallest
    while 2 * octave < size:
        octave *= 2
    step = max(octave // steps, 1)
    return octave + -(-max(size - octave, 0) // step) * step


class BucketedGraph:
    """A trie graph behind a padding of its inputs; see `kwise.engine.model.runtime.open.Graph`.

    The padded layout has no use for this: its batches are of like lengths, and a length beyond a model's positions is an error.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.runtime = graph.runtime
        self.inputs: Mapping[str, Shape] = graph.inputs
        self._sizes: dict[tuple[int, ...], _Sizes] = {}

    def run(self, arrays: Mapping[str, Array]) -> list[Array]:
        rewards, *present = self.graph.run(self.pad(arrays))
        num_kept = len(arrays["kept"])
        # Copies where anything is cut off: the prompt cache counts what it holds, and a view holds all of it.
        kept = [state if len(state) == num_kept else state[:num_kept].copy() for state in present]
        return [rewards[: len(arrays["last_rows"])], *kept]

    def pad(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's inputs as `kwise.engine.model.packing` says, `kept` and the past's states float[P, W] among them, longer."""
        num_rows, num_entries = len(arrays["input_ids"]), len(arrays["positions"])
        queries, keys, slots = _tiles(arrays)
        num_keys = (keys != NOT_PAST).sum(1)
        rows, most_keys = (
            round_up(num_rows, _SMALLEST, 4),
            round_up(int(num_keys.max()), _SMALLEST, 2),
        )
        past, kept = (
            round_up(size, _SMALLEST, 1) for size in (num_entries - num_rows, len(arrays["kept"]))
        )
        # Class c has tiles of up to widths[c] keys, and ascending ones: most keys last.
        widths = [most_keys >> c for c in reversed(range(min(_USED_CLASSES, _num_classes(arrays))))]
        sizes = self._grow(
            (rows, most_keys, past, kept),
            sequences=round_up(len(arrays["last_rows"]), 8, 1),
            queries=-(-queries.shape[1] // _QUERY_STEP) * _QUERY_STEP,
            tiles=np.bincount(np.searchsorted(widths, num_keys), minlength=len(widths)),
        )
        classes = _deal(num_keys, widths, sizes.tiles)

        padded: dict[str, Array] = {
            name: _longer(state, past, 0)
            for name, state in arrays.items()
            if name.startswith("past.")
        } | {
            # What stands for nothing is token 0 at position 0, attends as row 0 does, is seen by no row (its `ends` is 0)
            # and read by nobody: finite, and lost.
            "input_ids": _longer(arrays["input_ids"], rows, 0),
            "last_rows": _longer(arrays["last_rows"], sizes.sequences, 0),
            "kept": _longer(arrays["kept"], kept, 0),
        }
        for name in ("positions", "orders", "ends"):
            parts = arrays[name][:num_rows], arrays[name][num_rows:]
            padded[name] = np.concatenate(
                [_longer(part, size, 0) for part, size in zip(parts, (rows, past), strict=True)]
            )
        keys = np.where(
            keys < num_rows, keys, keys + rows - num_rows
        )  # the past's entries come after the rows'
        starts = np.empty(
            len(queries), np.int64
        )  # of each tile, among the classes' outputs laid end to end
        offset = 0
        for c, (width, count) in enumerate(zip(widths, sizes.tiles, strict=True)):
            members = np.flatnonzero(classes == c)
            starts[members] = offset + sizes.queries * np.arange(len(members))
            offset += sizes.queries * count
            padded[f"queries.{c}"], padded[f"keys.{c}"] = _nothing(count, sizes.queries, width)
            padded[f"queries.{c}"][: len(members), : queries.shape[1]] = queries[members]
            padded[f"keys.{c}"][: len(members)] = _wider(keys, width)[members]
        for c in range(len(widths), _num_classes(arrays)):
            padded[f"queries.{c}"], padded[f"keys.{c}"] = _nothing(1, _NOTHING, _NOTHING)
        tiles, places = np.divmod(slots, queries.shape[1])
        padded["outputs"] = _longer(starts[tiles] + places, rows, 0)
        return padded

    def _grow(
        self, choice: tuple[int, ...], *, sequences: int, queries: int, tiles: Int64
    ) -> "_Sizes":
        """The choice's sizes, grown where this batch has more. tiles: int64[classes in use], of each class's own."""
        old = self._sizes.get(choice, _Sizes(sequences=0, queries=0, tiles=(0,) * len(tiles)))
        grown, free = list(old.tiles), 0
        for c in reversed(range(len(grown))):
            if tiles[c] > free + grown[c]:
                grown[c] = round_up(int(tiles[c]) - free, 4, 2)
            free += grown[c] - int(tiles[c])
        self._sizes[choice] = _Sizes(
            sequences=max(old.sequences, sequences),
            queries=max(old.queries, queries),
            tiles=tuple(max(n, 1) for n in grown),
        )
        return self._sizes[choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """B, S, and n of each class in use."""

    sequences: int
    queries: int
    tiles: tuple[int, ...]


def _deal(num_keys: Int64, widths: Sequence[int], capacities: Sequence[int]) -> Int64:
    """The class of each tile, int64[n]: the narrowest that has its keys and a place; `_grow` has seen to it that one does."""
    classes = np.searchsorted(widths, num_keys)
    free = list(capacities)
    for tile in np.argsort(-num_keys, kind="stable"):
        while not free[classes[tile]]:
            classes[tile] += 1
        free[classes[tile]] -= 1
    return classes


def _num_classes(arrays: Mapping[str, Array]) -> int:
    return sum(name.startswith("queries.") for name in arrays)


def _tiles(arrays: Mapping[str, Array]) -> tuple[Int64, Int64, Int64]:
    """All classes as one: queries int64[n, S], keys int64[n, L] of every tile that has a row, and for each row its place
    int64[T] among these queries laid end to end."""
    classes = range(_num_classes(arrays))
    num_queries, num_keys = (
        max(arrays[f"{name}.{c}"].shape[1] for c in classes) for name in ("queries", "keys")
    )
    queries = np.concatenate([_wider(arrays[f"queries.{c}"], num_queries, 0) for c in classes])
    keys = np.concatenate([_wider(arrays[f"keys.{c}"], num_keys) for c in classes])
    shapes = [arrays[f"queries.{c}"].shape for c in classes]
    # The tile and the place in it of every position in the classes' outputs.
    starts = np.cumsum([0, *(n for n, _ in shapes)])
    slots = np.concatenate(
        [
            ((start + np.arange(n))[:, None] * num_queries + np.arange(S)).ravel()
            for start, (n, S) in zip(starts, shapes, strict=False)
        ]
    )[arrays["outputs"]]
    tiles, places = np.divmod(slots, num_queries)
    read = np.unique(tiles)  # without the tile of a class that has none
    return queries[read], keys[read], np.searchsorted(read, tiles) * num_queries + places


def _nothing(count: int, num_queries: int, num_keys: int) -> tuple[Int64, Int64]:
    """Tiles of row 0 seeing itself, so that no softmax is over nothing."""
    keys = np.full((count, num_keys), NOT_PAST)
    keys[:, 0] = 0
    return np.zeros((count, num_queries), np.int64), keys


def _longer(array: Array, size: int, fill: int) -> Array:
    """Along the first dimension; the array itself where it is long enough."""
    rest = np.full((size - len(array), *array.shape[1:]), fill, array.dtype)
    return np.concatenate([array, rest]) if len(rest) else array


def _wider(array: Int64, width: int, fill: int = NOT_PAST) -> Int64:
    """[n, size] → [n, width]; what is cut off, if anything, is padding."""
    wider = np.full((len(array), width), fill, np.int64)
    wider[:, : array.shape[1]] = array[:, :width]
    return wider
