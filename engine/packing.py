"""Token sequences → their trie → the flat arrays that the trie graph reads.

Every distinct prefix of the batch is one row, whichever caller sent it: a prompt common to K responses, a system prompt
common to different prompts, the earlier turns of a conversation. Sorting the sequences makes this a matter of comparing
neighbours: each sequence adds rows only past its longest common prefix with the one before it, and rows are numbered
depth first. Then

* row k is an ancestor of row q exactly if k <= q < ends[k], so a mask needs one integer per row;
* a tile of attention is any contiguous range of rows [a, b): all its keys are the ancestors of row a and the range
  itself, since an ancestor of a later row that lies before a is an ancestor of a too.

Tiles are cut to like sizes, sorted by number of keys and divided into C classes, each one call of ONNX's Attention; the
division wastes the least padding (dynamic programming). Packing knows tokens and rows; of prompts, groups and models
it knows nothing. It takes under 1 % of the time of the pass that it prepares.

Dimensions: B sequences, T rows, C classes, N tiles in a class, S queries in a tile, L keys of a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

# Queries a tile, to choose from. Fewer waste less on masked keys, more copy fewer keys and make better matrix products.
_TILE_SIZES = (32, 64, 96, 128)
# What copying one key and its value into a tile costs, in units of one (query, key) score. From timings of SmolLM2's
# shape on two AVX-512 cores; the choice is flat around the optimum, so other shapes lose little.
_KEY_COPY_COST = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """The rows of a batch, numbered depth first.

    input_ids, positions, ends: int64[T]; `positions` is the row's depth, rows below row r are r+1 … ends[r]-1.
    last_rows: int64[B], the row of each sequence's last token, in the order in which the sequences were given.
    """

    input_ids: Int64
    positions: Int64
    ends: Int64
    last_rows: Int64
    _starts: Int64  # int64[sequences with rows of their own], each one's first row
    _paths: list[Int64]  # beside it: the rows from the root to the sequence's last token

    @property
    def num_rows(self) -> int:
        return len(self.input_ids)

    def ancestors(self, row: int) -> Int64:
        """The rows above `row`, from the root down: int64[positions[row]]."""
        owner = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._paths[owner][: self.positions[row]]


def sort_key(token_ids: Int64) -> bytes:
    """Bytes that order as the token ids do (big-endian, four bytes a token), for sorting and for common prefixes."""
    return token_ids.astype(">u4").tobytes()


def common_prefix(a: bytes, b: bytes) -> int:
    """Tokens that two sort keys have in common from the start."""
    x, y = (np.frombuffer(key, ">u4", count=min(len(a), len(b)) // 4) for key in (a, b))
    differ = x != y
    return int(differ.argmax()) if differ.any() else len(x)


def build_trie(sequences: Sequence[Int64]) -> Trie:
    """One row per distinct prefix of the sequences (each int64[length >= 1])."""
    keys = [sort_key(sequence) for sequence in sequences]
    last_rows = np.empty(len(sequences), np.int64)
    input_ids: list[Int64] = []
    positions: list[Int64] = []
    starts: list[int] = []
    paths: list[Int64] = []
    ends = np.empty(sum(map(len, sequences)), np.int64)
    path: Int64 = np.empty(0, np.int64)
    previous, num_rows = b"", 0
    for index in sorted(range(len(sequences)), key=keys.__getitem__):
        tokens = sequences[index]
        shared = common_prefix(previous, keys[index])
        if shared < len(tokens):
            ends[path[shared:]] = num_rows  # the branch that ends here has all its rows
            new_rows = np.arange(num_rows, num_rows + len(tokens) - shared)
            path = np.concatenate([path[:shared], new_rows])
            input_ids.append(tokens[shared:])
            positions.append(np.arange(shared, len(tokens)))
            starts.append(num_rows)
            paths.append(path)
            num_rows += len(new_rows)
            previous = keys[index]
        last_rows[index] = path[len(tokens) - 1]
    ends[path] = num_rows
    return Trie(
        input_ids=np.concatenate(input_ids),
        positions=np.concatenate(positions),
        ends=ends[:num_rows].copy(),
        last_rows=last_rows,
        _starts=np.array(starts),
        _paths=paths,
    )


def pack(trie: Trie, num_classes: int) -> dict[str, Int64]:
    """The graph's inputs.

    input_ids, positions, ends: int64[T]; last_rows: int64[B]; for each class c: `queries_c` int64[N, S], rows, the tile's
    last row repeated as padding; `keys_c` int64[N, L], rows, padded with -1; and `outputs` int64[T], where each row's
    attention lies in the classes' outputs laid end to end.
    """
    bounds = _tile_bounds(trie)
    begins, stops = bounds[:-1], bounds[1:]
    num_keys = trie.positions[begins] + stops - begins
    order = np.argsort(num_keys, kind="stable")
    arrays = {
        "input_ids": trie.input_ids,
        "positions": trie.positions,
        "ends": trie.ends,
        "last_rows": trie.last_rows,
    }
    outputs = np.empty(trie.num_rows, np.int64)
    offset = 0
    for c, members in enumerate(_classes(order, (stops - begins)[order], num_keys[order], num_classes)):
        width = int((stops - begins)[members].max())
        queries = np.minimum(begins[members, None] + np.arange(width), stops[members, None] - 1)
        keys = np.full((len(members), int(num_keys[members].max())), -1)
        for n, tile in enumerate(members):
            begin, stop = int(begins[tile]), int(stops[tile])
            ancestors = trie.ancestors(begin)
            keys[n, : len(ancestors)] = ancestors
            keys[n, len(ancestors) : num_keys[tile]] = np.arange(begin, stop)
            outputs[begin:stop] = np.arange(offset + n * width, offset + n * width + stop - begin)
        offset += queries.size
        arrays[f"queries_{c}"], arrays[f"keys_{c}"] = queries, keys
    arrays["outputs"] = outputs
    return arrays


def _tile_bounds(trie: Trie) -> Int64:
    """int64[tiles + 1]: the rows in tiles of like sizes, of the size that a simple cost model likes best."""
    best, best_cost = np.array([0, trie.num_rows]), np.inf
    for size in _TILE_SIZES:
        num_tiles = -(-trie.num_rows // size)
        bounds = np.arange(num_tiles + 1) * trie.num_rows // num_tiles
        queries = np.diff(bounds)
        keys = trie.positions[bounds[:-1]] + queries
        cost = float((keys * (queries + _KEY_COPY_COST)).sum())
        if cost < best_cost:
            best, best_cost = bounds, cost
    return best


def _classes(order: Int64, num_queries: Int64, num_keys: Int64, num_classes: int) -> list[Int64]:
    """Cut tiles sorted by keys into exactly `num_classes` runs whose padded sizes add up to the least.

    A graph has a fixed number of calls. With fewer tiles than classes, a class repeats the first tile; its output is
    not read.
    """
    tiles = len(order)
    cost = np.full((tiles + 1, tiles + 1), np.inf)
    for i in range(tiles):
        widths = np.maximum.accumulate(num_queries[i:])
        cost[i, i + 1 :] = np.arange(1, tiles - i + 1) * widths * num_keys[i:]
    best = np.full(tiles + 1, np.inf)
    best[0] = 0
    choices = []
    for _ in range(min(num_classes, tiles)):
        totals = best[:, None] + cost
        choices.append(totals.argmin(0))
        best = totals.min(0)
    runs: list[Int64] = []
    end = tiles
    for choice in reversed(choices):
        runs.insert(0, order[choice[end] : end])
        end = int(choice[end])
    return runs + [order[:1]] * (num_classes - len(runs))
