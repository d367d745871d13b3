"""Turn a trie into the flat index arrays that the trie graph reads.

Nodes whose keys and values are known (`past`) are not computed; they are only entries of the key
table. All other nodes are the rows of the batch, in preorder. Attention runs in tiles: a tile is a
range of rows, and its keys are the ancestors of its first node and all nodes from there to its last
one. (Any other ancestor of a later row lies inside the tile.) Dynamic programming over a cost model
cuts the rows into tiles and divides the tiles by number of keys into groups, each one call of
ONNX's Attention, so that little work is padding. See docs/architecture.md. Packing 2,048 rows takes
less than 1 ms, and 8,192 rows 2 to 4 ms; SmolLM2's pass of 2,048 rows takes 2 s on two cores.

Dimensions: N nodes; T rows; P past entries; R nodes that the head reads; n tiles of a group, S
queries and L keys each.
"""

from dataclasses import dataclass

import numpy as np

from kwise.engine.trie import Int64, Trie

# A tile starts where a branch starts or at a multiple of _CUT_STEP rows, and has at most _MAX_TILE
# rows.
_CUT_STEP, _MAX_TILE = 16, 160
# The cost of a tile with S queries and L keys, in units of one (query, key) score, is
# S·L + _KEY_COST·L + _TILE_COST: each key is copied and packed for the matrix product whatever S
# is. Fitted to timings of SmolLM2's heads on two AVX-512 cores: the throughput of a call at S = 16,
# 32, 64 and 128 relates as 0.69, 0.83, 0.95 and 1. The optimum is flat, so other head shapes lose
# little.
_KEY_COST, _TILE_COST = 14, 2000
# The cost of one more call: starting its nodes, and threads that wait for one another if its heads
# do not divide evenly among them.
_CALL_COST = 4000
# A call writes all its scores before it reads them. Above this many (19 MB for SmolLM2's nine
# heads) another call is cheaper.
_MANY_SCORES, _EXCESS_COST = 1 << 19, 0.3
# With aligned keys: multiples of _KEY_STEP keys leave ONNX Runtime's softmax no remainder beyond
# its parallel sums (64 with AVX-512), and at least _MIN_QUERIES queries keep it from using its
# kernel for matrix times vector, which adds up in another order.
_KEY_STEP, _MIN_QUERIES = 64, 2
NOT_PAST = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The index inputs of the trie graph, and the place of each node.

    arrays, all int64. The key table has an entry per row, then an entry per past entry:
        input_ids [T]: the token of each row.
        positions, preorder, subtree_end [T+P]: position, node number and end of the subtree (see
            `Trie`) of each entry of the key table.
        last_rows [R]: the rows that the head reads; without mean pooling, the row of each
            sequence's last token.
        queries.GROUP [n, S]: rows of each tile. Padding is in front, and repeats the first row.
        keys.GROUP [n, L]: entries of the key table for each tile. Padding, at the end, is negative:
            it counts from the table's end, and is again the tile's first key.
        lengths.GROUP [n]: the number of keys of each tile that are not padding.
        outputs [T]: the place of each row's result among the groups' outputs laid end to end.
    entries: int64[N], the entry of the key table for each node; a value below T is also the node's
        row.
    """

    arrays: dict[str, Int64]
    entries: Int64
    num_rows: int


def pack(
    trie: Trie,
    num_tile_groups: int,
    past: Int64 | None = None,
    num_past: int = 0,
    *,
    read_nodes: Int64 | None = None,
    aligned_keys: bool = False,
) -> Packed:
    """Lay out the trie's nodes as rows and past entries, and the rows as tiles.

    Args:
        past: int64[N] or None: for each node its index among the `num_past` past entries, or
            NOT_PAST. A node whose hidden state the head reads is never past.
        read_nodes: int64[R], the nodes that the head reads; None for each sequence's last one.
        aligned_keys: put a row's keys at the same places in every batch, so that attention adds
            them up in the same order and the row's result is the same to the last bit. This costs
            some padding. It is for graphs that round to few bits, where a difference in the last
            bit may flip a rounding and so grow a hundred-thousandfold, and for graphs whose
            attention is causal instead of masked: a tile's keys are then one path of the trie, and
            its rows are the last nodes of that path.
    """
    past = np.full(trie.num_nodes, NOT_PAST) if past is None else past
    read_nodes = trie.last_nodes if read_nodes is None else read_nodes
    nodes = np.flatnonzero(past == NOT_PAST)  # int64[T]
    num_rows = len(nodes)
    entries = np.where(past == NOT_PAST, np.cumsum(past == NOT_PAST) - 1, past + num_rows)  # [N]
    arrays = {"input_ids": trie.token_ids[nodes], "last_rows": entries[read_nodes]}
    for name, values_N in (
        ("positions", trie.depths),
        ("preorder", np.arange(trie.num_nodes)),
        ("subtree_end", trie.subtree_end),
    ):
        # A past entry that stands for no node (of a prefix that was cached twice) stays 0: no tile
        # reads it.
        arrays[name] = np.zeros(num_rows + num_past, np.int64)
        arrays[name][entries] = values_N

    tiles = _cut_into_tiles(trie, nodes, aligned_keys)
    outputs = np.empty(num_rows, np.int64)
    offset = 0
    for group, members in enumerate(_group_tiles(tiles, num_tile_groups)):
        max_queries = max((tiles.num_queries[tile] for tile in members), default=1)
        max_keys = max((tiles.num_keys[tile] for tile in members), default=1)
        if aligned_keys and len(members):
            max_queries = max(max_queries, _MIN_QUERIES)
            max_keys = -(-max_keys // _KEY_STEP) * _KEY_STEP
        queries = np.zeros((max(len(members), 1), max_queries), np.int64)  # [n, S]
        keys = np.zeros((len(queries), max_keys), np.int64)  # [n, L]
        # A group without tiles computes one score, which is not read.
        lengths = tiles.num_keys[members] if len(members) else np.ones(1, np.int64)
        for n, tile in enumerate(members):
            begin, stop = tiles.bounds[tile], tiles.bounds[tile + 1]
            queries[n] = np.maximum(np.arange(stop - max_queries, stop), begin)
            ancestors = trie.path(int(nodes[begin]))[:-1]
            keys[n, : len(ancestors)] = entries[ancestors]
            keys[n, len(ancestors) : lengths[n]] = entries[nodes[begin] : nodes[stop - 1] + 1]
            keys[n, lengths[n] :] = keys[n, 0] - (num_rows + num_past)
            end = offset + (n + 1) * max_queries
            outputs[begin:stop] = np.arange(end - (stop - begin), end)
        offset += queries.size
        arrays[f"queries.{group}"], arrays[f"keys.{group}"] = queries, keys
        arrays[f"lengths.{group}"] = lengths
    arrays["outputs"] = outputs
    return Packed(arrays=arrays, entries=entries, num_rows=num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Tile i has rows bounds[i] … bounds[i+1]-1, num_queries[i] of them, and num_keys[i] keys."""

    bounds: Int64
    num_queries: Int64
    num_keys: Int64


def _cut_into_tiles(trie: Trie, nodes: Int64, aligned_keys: bool) -> _Tiles:
    """Cut the rows into tiles where the cost model is lowest.

    With aligned keys a tile ends where its branch ends. Its keys are then one path, with the key of
    depth d at place d. It ends before past nodes too, so that its rows are the last nodes of that
    path. Such nodes follow rows if a sequence ends inside a cached prompt of another one.

    Args:
        nodes: int64[T], the node of each row.
    """
    num_rows = len(nodes)
    begins = np.searchsorted(nodes, trie.branches)
    if aligned_keys:
        begins = np.union1d(begins, np.flatnonzero(np.diff(nodes) > 1) + 1)
    cuts = np.unique(
        np.concatenate([np.arange(0, num_rows, _CUT_STEP), begins[begins < num_rows], [num_rows]])
    )
    first_cuts = np.searchsorted(cuts, cuts - _MAX_TILE)  # the earliest cut where a tile may begin
    if aligned_keys:
        branches = np.unique(np.append(np.searchsorted(cuts, begins[begins < num_rows]), 0))
        branch_of_cut = branches[np.searchsorted(branches, np.arange(len(cuts))) - 1]
        first_cuts = np.maximum(first_cuts, branch_of_cut)
    begin_nodes = nodes[cuts[:-1]]
    # A tile's keys are the ancestors of its first node, and all nodes from there to its last one.
    key_bases = trie.depths[begin_nodes] - begin_nodes
    ends = np.arange(1, len(cuts))
    # [end, w]: the cost of the tile from cut `first_cuts[end] + w` to cut `end`. They are computed
    # at once, because NumPy's calls on ten numbers each would take most of the time.
    begins_of = first_cuts[1:, None] + np.arange(int((ends - first_cuts[1:]).max()))
    begins_of = np.minimum(begins_of, ends[:, None] - 1)  # what is beyond repeats the last
    num_queries = cuts[1:, None] - cuts[begins_of]
    num_keys = key_bases[begins_of] + (nodes[cuts[1:] - 1] + 1)[:, None]
    tile_costs = (num_queries + _KEY_COST) * num_keys + float(_TILE_COST)
    costs = np.zeros(len(cuts))
    begin_cuts = [0] * len(cuts)  # where the tile that ends at this cut best begins
    for end, first in enumerate(first_cuts[1:].tolist(), start=1):
        totals = costs[first:end] + tile_costs[end - 1, : end - first]
        best = int(totals.argmin())
        costs[end], begin_cuts[end] = totals[best], first + best
    selected = [len(cuts) - 1]
    while selected[-1]:
        selected.append(begin_cuts[selected[-1]])
    bounds = cuts[selected[::-1]]
    last_nodes = nodes[bounds[1:] - 1]
    num_keys = trie.depths[nodes[bounds[:-1]]] + last_nodes - nodes[bounds[:-1]] + 1
    return _Tiles(bounds=bounds, num_queries=np.diff(bounds), num_keys=num_keys)


def _group_tiles(tiles: _Tiles, num_tile_groups: int) -> list[Int64]:
    """Divide the tiles, sorted by number of keys, into the groups that cost least.

    Returns `num_tile_groups` arrays of tile numbers; the last ones may be empty.
    """
    order = np.argsort(tiles.num_keys, kind="stable")
    num_keys, num_queries = tiles.num_keys[order], tiles.num_queries[order]
    num_tiles = len(order)
    # cost[i, j]: tiles i … j-1 as one call, padded to the most queries and the most keys among
    # them.
    cost = np.full((num_tiles + 1, num_tiles + 1), np.inf)
    i, j = np.arange(num_tiles)[:, None], np.arange(num_tiles)
    max_queries = np.maximum.accumulate(np.where(j >= i, num_queries, 0), axis=1)
    counts = j - i + 1
    excess = np.maximum(counts * max_queries * num_keys - _MANY_SCORES, 0)
    tile_costs = counts * (max_queries + _KEY_COST) * num_keys
    cost[:-1, 1:] = np.where(j >= i, tile_costs + _CALL_COST + _EXCESS_COST * excess, np.inf)
    lowest = np.full(num_tiles + 1, np.inf)  # [j]: of tiles 0 … j-1 in the groups so far
    lowest[0] = 0
    totals, begin_tiles = [], []
    for _ in range(min(num_tile_groups, num_tiles)):
        sums = lowest[:, None] + cost
        lowest = sums.min(0)
        totals.append(lowest[-1])
        begin_tiles.append(sums.argmin(0))
    groups: list[Int64] = []
    end = num_tiles
    for begin in reversed(begin_tiles[: int(np.argmin(totals)) + 1]):
        groups.insert(0, order[begin[end] : end])
        end = int(begin[end])
    return groups + [order[:0]] * (num_tile_groups - len(groups))
