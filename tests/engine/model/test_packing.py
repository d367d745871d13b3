"""Packing a trie into tiles of attention changes no result, whatever part of it is past."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwise.engine.model.packing import NOT_PAST, Packed, pack
from kwise.engine.trie import Int64, Trie, build_trie
from tests.batches import BATCHES, VOCAB

TILE_GROUPS = st.integers(1, 6)


@st.composite
def _known(draw: st.DrawFn) -> tuple[Trie, Int64, list[int | None]]:
    """A trie, its past nodes, and for each past entry its node; None if it stands for no node.

    Any prefixes of sequences are past, but no sequence's last node, and not the first nodes that
    are computed for a new prompt; some entries stand for no node,
    and some hold the states of a node that another entry stands for.
    """
    batch = draw(BATCHES)
    trie = build_trie(batch)
    known: set[int] = set()
    for last in draw(st.lists(st.sampled_from(trie.last_nodes.tolist()), max_size=4)):
        path = trie.path(last)
        known |= set(path[: draw(st.integers(0, len(path)))].tolist())
    for last in draw(st.lists(st.sampled_from(trie.last_nodes.tolist()), max_size=2)):
        path = trie.path(last)
        known -= set(path[: draw(st.integers(0, len(path)))].tolist())
    entries: list[int | None] = [
        *(known - set(trie.last_nodes.tolist())),
        *draw(st.lists(st.none(), max_size=3)),
    ]
    entries += draw(st.lists(st.sampled_from([*known, None]), max_size=3))
    draw(st.randoms(use_true_random=False)).shuffle(entries)
    past = np.full(trie.num_nodes, NOT_PAST)
    for entry, node in enumerate(entries):
        if node is not None and node not in trie.last_nodes:
            past[node] = entry
    return trie, past, entries


KNOWN = _known()


def _tiles(packed: Packed, num_tile_groups: int) -> Iterator[tuple[Int64, Int64]]:
    """Yield the queries and keys of every tile, in the order of their outputs."""
    for c in range(num_tile_groups):
        yield from zip(packed.arrays[f"queries.{c}"], packed.arrays[f"keys.{c}"], strict=True)


def _seen(packed: Packed, query: int, keys: Int64) -> Int64:
    """Return the entries among `keys` that the graph lets row `query` see, in the tile's order."""
    preorder, subtree_end = packed.arrays["preorder"], packed.arrays["subtree_end"]
    real = keys[keys >= 0]
    return real[(preorder[real] <= preorder[query]) & (preorder[query] < subtree_end[real])]


@given(KNOWN, TILE_GROUPS, st.booleans())
def test_every_row_sees_its_ancestors_and_itself_once(
    known: tuple[Trie, Int64, list[int | None]], num_tile_groups: int, aligned: bool
) -> None:
    trie, past, entries = known
    packed = pack(trie, num_tile_groups, past, len(entries), aligned_keys=aligned)
    row_at, seen_at = [], []
    for queries, keys in _tiles(packed, num_tile_groups):
        row_at += queries.tolist()
        seen_at += [sorted(_seen(packed, query, keys).tolist()) for query in queries]
    assert len(packed.arrays["outputs"]) == packed.num_rows
    for row, node in enumerate(np.flatnonzero(past == NOT_PAST)):
        output = packed.arrays["outputs"][row]
        assert row_at[output] == row
        assert seen_at[output] == sorted(packed.entries[trie.path(int(node))].tolist())


@given(KNOWN, TILE_GROUPS)
def test_aligned_keys_lie_at_their_depths(
    known: tuple[Trie, Int64, list[int | None]], num_tile_groups: int
) -> None:
    """In every batch, so that a softmax over them is one sum in one order, followed by zeros."""
    trie, past, entries = known
    packed = pack(trie, num_tile_groups, past, len(entries), aligned_keys=True)
    node_at = {int(entry): node for node, entry in enumerate(packed.entries)}
    for queries, keys in _tiles(packed, num_tile_groups):
        if len(keys) == 1:
            continue  # a group without tiles
        assert len(queries) >= 2 and len(keys) % 64 == 0
        seen = keys[keys >= 0]
        assert (keys[: len(seen)] == seen).all()
        last = node_at[int(seen[-1])]
        assert seen.tolist() == packed.entries[trie.path(last)].tolist()
        assert int(queries.max()) == seen[-1]


@given(KNOWN, TILE_GROUPS)
def test_with_aligned_keys_a_tile_is_causal_from_its_lower_right_corner(
    known: tuple[Trie, Int64, list[int | None]], num_tile_groups: int
) -> None:
    trie, past, entries = known
    packed = pack(trie, num_tile_groups, past, len(entries), aligned_keys=True)
    ends = 0
    for group in range(num_tile_groups):
        arrays = (packed.arrays[f"{kind}.{group}"] for kind in ("queries", "keys", "lengths"))
        for queries, keys, length in zip(*arrays, strict=True):
            ends += len(queries)
            assert length == (keys >= 0).sum()
            for place, query in enumerate(reversed(queries)):
                if ends - 1 - place in packed.arrays["outputs"]:
                    assert _seen(packed, query, keys).tolist() == keys[: length - place].tolist()


@given(KNOWN, TILE_GROUPS)
def test_rows_are_the_nodes_that_are_not_past_in_preorder(
    known: tuple[Trie, Int64, list[int | None]], num_tile_groups: int
) -> None:
    trie, past, entries = known
    packed = pack(trie, num_tile_groups, past, len(entries))
    computed = np.flatnonzero(past == NOT_PAST)
    assert packed.num_rows == len(computed)
    assert packed.arrays["input_ids"].tolist() == trie.token_ids[computed].tolist()
    assert packed.entries[computed].tolist() == list(range(len(computed)))
    for node in np.flatnonzero(past != NOT_PAST):
        assert packed.entries[node] == packed.num_rows + past[node]
    assert packed.arrays["last_rows"].tolist() == packed.entries[trie.last_nodes].tolist()
    assert (packed.arrays["last_rows"] < packed.num_rows).all()
    for name, values in (
        ("positions", trie.depths),
        ("preorder", np.arange(trie.num_nodes)),
        ("subtree_end", trie.subtree_end),
    ):
        assert packed.arrays[name].shape == (packed.num_rows + len(entries),)
        assert packed.arrays[name][packed.entries].tolist() == values.tolist()


@given(KNOWN, TILE_GROUPS)
def test_padding_is_the_first_query_again_and_a_negative_first_key(
    known: tuple[Trie, Int64, list[int | None]], num_tile_groups: int
) -> None:
    trie, past, entries = known
    packed = pack(trie, num_tile_groups, past, len(entries))
    names = {
        f"{kind}.{c}" for kind in ("queries", "keys", "lengths") for c in range(num_tile_groups)
    }
    assert packed.arrays.keys() == {
        "input_ids",
        "positions",
        "preorder",
        "subtree_end",
        "last_rows",
        "outputs",
        *names,
    }
    assert all(array.dtype == np.int64 for array in packed.arrays.values())
    for queries, keys in _tiles(packed, num_tile_groups):
        real = len(set(queries.tolist()))
        first, last = queries[-real], queries[-1]
        assert queries.tolist() == [max(last - i, first) for i in reversed(range(len(queries)))]
        num_keys = int((keys >= 0).sum())
        assert (keys[:num_keys] >= 0).all()
        num_entries = packed.num_rows + len(entries)
        assert (keys[num_keys:] + num_entries == keys[0]).all()
        assert len(set(keys[:num_keys].tolist())) == num_keys


@given(BATCHES)
def test_a_group_without_tiles_is_one_score_that_is_not_read(batch: list[Int64]) -> None:
    packed = pack(build_trie(batch[:1]), 12)
    offsets = np.cumsum([0, *(packed.arrays[f"queries.{c}"].size for c in range(12))])
    used = np.searchsorted(offsets, packed.arrays["outputs"], side="right") - 1
    empty = [c for c in range(12) if c not in used]
    assert empty
    for c in empty:
        assert (
            packed.arrays[f"queries.{c}"].tolist() == packed.arrays[f"keys.{c}"].tolist() == [[0]]
        )


# A small model in numpy

Layers = Any  # float64[layers, 3, width, width], the projections to queries, keys and values


def _softmax(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _naive(sequence: Int64, embedding: Any, rotations: Any, layers: Layers) -> tuple[Any, Any]:
    """Run causal attention over one sequence.

    Returns the last token's hidden state, and its keys and values in each layer.
    """
    hidden = embedding[sequence] + rotations[: len(sequence)]
    causal = np.tril(np.ones((len(sequence), len(sequence)), bool))
    states = []
    for wq, wk, wv in layers:
        states.append((hidden[-1] @ wk, hidden[-1] @ wv))
        scores = np.where(causal, (hidden @ wq) @ (hidden @ wk).T, -np.inf)
        hidden = hidden + np.tanh(_softmax(scores) @ (hidden @ wv))
    return hidden[-1], states


def _packed(
    packed: Packed, num_tile_groups: int, past: Any, embedding: Any, rotations: Any, layers: Layers
) -> Any:
    """Compute the same from the packed arrays: gather, attend per tile, reorder by `outputs`."""
    arrays = packed.arrays
    hidden = embedding[arrays["input_ids"]] + rotations[arrays["positions"][: packed.num_rows]]
    for (wq, wk, wv), (past_keys, past_values) in zip(layers, past, strict=True):
        query, key, value = (
            hidden @ wq,
            np.concatenate([hidden @ wk, past_keys]),
            np.concatenate([hidden @ wv, past_values]),
        )
        attended = []
        for c in range(num_tile_groups):
            queries, keys = arrays[f"queries.{c}"], arrays[f"keys.{c}"]
            order = arrays["preorder"][queries][..., None]
            visible = (
                (keys >= 0)[:, None]
                & (arrays["preorder"][keys][:, None] <= order)
                & (order < arrays["subtree_end"][keys][:, None])
            )
            scores = np.where(visible, query[queries] @ key[keys].swapaxes(1, 2), -np.inf)
            attended.append((_softmax(scores) @ value[keys]).reshape(-1, hidden.shape[1]))
        hidden = hidden + np.tanh(np.concatenate(attended)[arrays["outputs"]])
    return hidden[arrays["last_rows"]]


@given(KNOWN, TILE_GROUPS, st.integers(0, 99))
def test_attention_over_packed_rows_is_attention_over_each_sequence(
    known: tuple[Trie, Int64, list[int | None]], num_tile_groups: int, seed: int
) -> None:
    """Past keys and values are given, and entries that stand for no node are not read."""
    trie, past, entries = known
    random = np.random.default_rng(seed)
    width = 5
    embedding, rotations = (
        random.normal(size=(VOCAB, width)),
        random.normal(size=(trie.depths.max() + 1, width)),
    )
    model = embedding, rotations, random.normal(size=(2, 3, width, width))

    def naive(node: int) -> tuple[Any, Any]:
        return _naive(trie.token_ids[trie.path(node)], *model)

    states = np.full((2, 2, len(entries), width), 1e9)
    for entry, node in enumerate(entries):
        if node is not None:
            states[:, :, entry] = naive(node)[1]
    actual = _packed(
        pack(trie, num_tile_groups, past, len(entries)), num_tile_groups, states, *model
    )
    expected = [naive(int(last))[0] for last in trie.last_nodes]
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@given(BATCHES, TILE_GROUPS)
def test_nothing_past_is_the_same_as_no_past(batch: list[Int64], num_tile_groups: int) -> None:
    trie = build_trie(batch)
    without, empty = (
        pack(trie, num_tile_groups),
        pack(trie, num_tile_groups, np.full(trie.num_nodes, NOT_PAST), 0),
    )
    assert without.num_rows == trie.num_nodes
    assert without.entries.tolist() == empty.entries.tolist() == list(range(trie.num_nodes))
    assert {name: array.tolist() for name, array in without.arrays.items()} == {
        name: array.tolist() for name, array in empty.arrays.items()
    }


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
@pytest.mark.parametrize("num_tile_groups", [1, 8])
def test_large_batches_see_their_ancestors(
    num_tile_groups: int, seed: int, system_is_past: bool
) -> None:
    random = np.random.default_rng(seed)
    system = random.integers(0, VOCAB, random.integers(1, 300))
    batch: list[Int64] = []
    for _ in range(random.integers(1, 5)):
        prompt = np.concatenate([system, random.integers(0, VOCAB, random.integers(1, 200))])
        lengths = random.integers(1, 120, random.integers(1, 5))
        batch.extend(
            np.concatenate([prompt, random.integers(0, VOCAB, length)]) for length in lengths
        )
    trie = build_trie(batch)
    past = np.full(trie.num_nodes, NOT_PAST)
    num_past = len(system) if system_is_past else 0
    past[:num_past] = np.arange(num_past)
    packed = pack(trie, num_tile_groups, past, num_past)
    slots = [
        (query, keys) for queries, keys in _tiles(packed, num_tile_groups) for query in queries
    ]
    seen = np.zeros((packed.num_rows, packed.num_rows + num_past), np.int64)
    for row, output in enumerate(packed.arrays["outputs"]):
        query, keys = slots[output]
        assert query == row
        np.add.at(seen[row], _seen(packed, row, keys), 1)
    nodes = np.arange(trie.num_nodes)
    rows = np.flatnonzero(past == NOT_PAST)
    assert (
        seen[:, packed.entries] == (nodes <= rows[:, None]) & (rows[:, None] < trie.subtree_end)
    ).all()
