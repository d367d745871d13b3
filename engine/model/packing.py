"""A trie → the flat arrays that the trie graph reads.

Nodes whose keys and values are known already (`past`) are not computed: they are entries of the key table only. The others
are the rows of the batch, in depth-first order. Attention runs in tiles: a tile is a range of rows, and its keys are the
ancestors of its first node and every node from there to its last one, since an ancestor of a later row that lies before
the tile is an ancestor of its first row too. Where a range jumps to another branch it inherits keys that most of it cannot
see, so tiles are cut by dynamic programming over a model of their cost, then divided by length of keys into C classes,
each one call of ONNX's Attention, so that padding wastes the least.

Packing knows nodes and rows; of prompts, groups and models it knows nothing. It takes some 2 ms for a batch of 2,048 rows,
a thousandth of SmolLM2's pass on two cores.

Dimensions: N nodes; T rows; P past nodes; C classes; n tiles of a class, S queries of a tile, L keys of a tile.
"""

from dataclasses import dataclass

import numpy as np

from kwise.engine.trie import Int64, Trie

# A tile is cut where a branch begins or at a multiple of this, and spans at most so many rows.
_CUT_STEP, _MAX_TILE = 16, 160
# The cost of a tile of S queries and L keys, in units of one (query, key) score: S·L + _KEY_COST·L + _TILE_COST. A key is
# copied and packed for the matrix product whatever S is. From timings of SmolLM2's heads on two AVX-512 cores: rates of a
# call at S = 16, 32, 64 and 128 relate as 0.69, 0.83, 0.95 and 1; the optimum is flat, so other shapes lose little.
_KEY_COST, _TILE_COST = 14, 2000
# And of one more call: its nodes' start, and threads that wait for one another where its heads do not divide evenly.
_CALL_COST = 4000
# A call writes all its scores before it reads them: beyond so many (19 MB for SmolLM2's nine heads) another call is better.
_MANY_SCORES, _EXCESS_COST = 1 << 19, 0.3
# Aligned, ONNX Runtime's softmax has no remainder beyond its sums in parallel (64 with AVX-512), and no tile has one query, for
# which the matrix product is another kernel that sums up otherwise.
_KEY_STEP, _LEAST_WIDTH = 64, 2
NOT_PAST = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The graph's index inputs, and where each node went.

    arrays: `input_ids` int64[T]; `positions`, `orders`, `ends` int64[T+P] of every entry of the key table, rows first;
    `last_rows` int64[B]; for each class c `queries.c` int64[n, S], rows, the tile's last row repeated as padding, and
    `keys.c` int64[n, L], entries of the key table, padded with -1; `outputs` int64[T], where each row's attention lies in
    the classes' outputs laid end to end.
    entries: int64[N], the entry of the key table that holds each node; below T it is the node's row.
    """

    arrays: dict[str, Int64]
    entries: Int64
    num_rows: int


def pack(
    trie: Trie,
    num_classes: int,
    past: Int64 | None = None,
    num_past: int = 0,
    *,
    aligned: bool = False,
) -> Packed:
    """Lay out the trie's nodes.

    aligned: in every batch a token's keys have the same places, so that its attention is summed up in the same order and is the
    same to the last bit. Costs some padding. For graphs that round to few bits: there a last bit may turn a rounding, and what
    follows from it is a hundred thousand times as large.

    past: int64[N] or None, for each node its place among the `num_past` entries whose keys and values are given, or
    NOT_PAST. The last node of a sequence is never past: its hidden state is what the head reads.
    """
    past = np.full(trie.num_nodes, NOT_PAST) if past is None else past
    nodes = np.flatnonzero(past == NOT_PAST)
    num_rows = len(nodes)
    entries = np.where(past == NOT_PAST, np.cumsum(past == NOT_PAST) - 1, past + num_rows)
    arrays = {"input_ids": trie.token_ids[nodes], "last_rows": entries[trie.last_nodes]}
    # Entries that no node stands for (a prefix kept twice) stay zero: nothing refers to them.
    for name, values in (
        ("positions", trie.depths),
        ("orders", np.arange(trie.num_nodes)),
        ("ends", trie.ends),
    ):
        arrays[name] = np.zeros(num_rows + num_past, np.int64)
        arrays[name][entries] = values

    tiles = _tiles(trie, nodes, aligned)
    outputs = np.empty(num_rows, np.int64)
    offset = 0
    for c, members in enumerate(_classes(tiles, num_classes)):
        width = max((tiles.num_queries[tile] for tile in members), default=1)
        longest = max((tiles.num_keys[tile] for tile in members), default=1)
        if aligned and len(members):
            width, longest = max(width, _LEAST_WIDTH), -(-longest // _KEY_STEP) * _KEY_STEP
        queries = np.zeros((max(len(members), 1), width), np.int64)
        keys = np.full((len(queries), longest), -1)
        if not len(members):
            keys[:] = 0  # a class without tiles: one score, which nobody reads
        for n, tile in enumerate(members):
            begin, stop = tiles.bounds[tile], tiles.bounds[tile + 1]
            queries[n] = np.minimum(begin + np.arange(width), stop - 1)
            ancestors = trie.path(int(nodes[begin]))[:-1]
            keys[n, : len(ancestors)] = entries[ancestors]
            keys[n, len(ancestors) : tiles.num_keys[tile]] = entries[
                nodes[begin] : nodes[stop - 1] + 1
            ]
            outputs[begin:stop] = np.arange(offset + n * width, offset + n * width + stop - begin)
        offset += queries.size
        arrays[f"queries.{c}"], arrays[f"keys.{c}"] = queries, keys
    arrays["outputs"] = outputs
    return Packed(arrays=arrays, entries=entries, num_rows=num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Tile i is rows bounds[i] … bounds[i+1]-1, with so many queries and keys."""

    bounds: Int64
    num_queries: Int64
    num_keys: Int64


def _tiles(trie: Trie, nodes: Int64, aligned: bool) -> _Tiles:
    """Cut the rows (`nodes` int64[T], the node of each) where the cost model finds it cheapest; aligned tiles end where a branch
    does, so that their keys are one path, the key of depth d at place d."""
    num_rows = len(nodes)
    begins = np.searchsorted(nodes, trie.branches)
    cuts = np.unique(
        np.concatenate([np.arange(0, num_rows, _CUT_STEP), begins[begins < num_rows], [num_rows]])
    )
    firsts = np.searchsorted(cuts, cuts - _MAX_TILE)
    if aligned:
        branches = np.unique(np.append(np.searchsorted(cuts, begins[begins < num_rows]), 0))
        firsts = np.maximum(firsts, branches[np.searchsorted(branches, np.arange(len(cuts))) - 1])
    begin_nodes = nodes[cuts[:-1]]
    # Keys of a tile from cut i to cut j: ancestors of its first node, and nodes from there to the last.
    key_bases = trie.depths[begin_nodes] - begin_nodes
    costs = np.zeros(len(cuts))
    choices = np.zeros(len(cuts), np.int64)
    for j in range(1, len(cuts)):
        i = slice(int(firsts[j]), j)
        num_queries = cuts[j] - cuts[i]
        num_keys = key_bases[i] + nodes[cuts[j] - 1] + 1
        totals = costs[i] + (num_queries + _KEY_COST) * num_keys + _TILE_COST
        choice = int(totals.argmin())
        costs[j], choices[j] = totals[choice], firsts[j] + choice
    chosen = [len(cuts) - 1]
    while chosen[-1]:
        chosen.append(int(choices[chosen[-1]]))
    bounds = cuts[chosen[::-1]]
    num_keys = trie.depths[nodes[bounds[:-1]]] + nodes[bounds[1:] - 1] - nodes[bounds[:-1]] + 1
    return _Tiles(bounds=bounds, num_queries=np.diff(bounds), num_keys=num_keys)


def _classes(tiles: _Tiles, num_classes: int) -> list[Int64]:
    """The tiles, sorted by keys, in at most `num_classes` runs that cost the least; the remaining runs are empty."""
    order = np.argsort(tiles.num_keys, kind="stable")
    num_keys, num_queries = tiles.num_keys[order], tiles.num_queries[order]
    num_tiles = len(order)
    # cost[i, j]: tiles i … j-1 as one call, padded to the most queries and the most keys among them.
    cost = np.full((num_tiles + 1, num_tiles + 1), np.inf)
    for i in range(num_tiles):
        widths, counts = np.maximum.accumulate(num_queries[i:]), np.arange(1, num_tiles - i + 1)
        excess = np.maximum(counts * widths * num_keys[i:] - _MANY_SCORES, 0)
        cost[i, i + 1 :] = (
            counts * (widths + _KEY_COST) * num_keys[i:] + _CALL_COST + _EXCESS_COST * excess
        )
    best = np.full(num_tiles + 1, np.inf)
    best[0] = 0
    totals, choices = [], []
    for _ in range(min(num_classes, num_tiles)):
        sums = best[:, None] + cost
        best = sums.min(0)
        totals.append(best[-1])
        choices.append(sums.argmin(0))
    runs: list[Int64] = []
    end = num_tiles
    for choice in reversed(choices[: int(np.argmin(totals)) + 1]):
        runs.insert(0, order[choice[end] : end])
        end = int(choice[end])
    return runs + [order[:0]] * (num_classes - len(runs))
