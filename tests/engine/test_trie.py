"""A trie has exactly one node per distinct prefix of a batch."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as random_arrays

from kwise.engine.trie import Int64, Trie, build_trie, common_prefix, key_length, sort_key
from tests.batches import BATCHES

TOKEN_IDS = st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 2**31 - 1])
SEQUENCES = random_arrays(np.int64, st.integers(0, 6), elements=TOKEN_IDS)


def _prefixes(batch: list[Int64]) -> set[tuple[int, ...]]:
    return {tuple(sequence[: n + 1].tolist()) for sequence in batch for n in range(len(sequence))}


def _tokens(trie: Trie, node: int) -> tuple[int, ...]:
    return tuple(trie.token_ids[trie.path(node)].tolist())


@given(BATCHES)
def test_every_distinct_prefix_is_exactly_one_node(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    nodes = [_tokens(trie, node) for node in range(trie.num_nodes)]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == _prefixes(batch)


@given(BATCHES)
def test_path_to_the_last_node_gives_back_each_sequence(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    assert len(trie.last_nodes) == len(batch)
    for sequence, last in zip(batch, trie.last_nodes, strict=True):
        assert _tokens(trie, int(last)) == tuple(sequence.tolist())


@given(BATCHES)
def test_depths_of_a_path_count_up_from_the_root_to_the_node(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    for node in range(trie.num_nodes):
        path = trie.path(node)
        assert path[-1] == node
        assert trie.depths[path].tolist() == list(range(len(path)))


@given(BATCHES)
def test_a_node_is_an_ancestor_exactly_within_its_range(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    nodes = np.arange(trie.num_nodes)
    for q in range(trie.num_nodes):
        assert (
            np.flatnonzero((nodes <= q) & (q < trie.subtree_end)).tolist() == trie.path(q).tolist()
        )


@given(BATCHES)
def test_a_branch_begins_where_a_node_follows_no_node_of_its_own_sequence(
    batch: list[Int64],
) -> None:
    trie = build_trie(batch)
    expected = []
    for node in range(trie.num_nodes):
        parent = trie.path(node)[-2] if trie.depths[node] else None
        if parent is None or parent != node - 1 or parent in trie.last_nodes:
            expected.append(node)
    assert trie.branches.tolist() == expected


@given(BATCHES)
def test_arrays_are_int64_and_one_entry_a_node(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    for array in (trie.token_ids, trie.depths, trie.subtree_end):
        assert array.shape == (len(_prefixes(batch)),) == (trie.num_nodes,)
        assert array.dtype == np.int64
    assert trie.last_nodes.dtype == trie.branches.dtype == trie.path(0).dtype == np.int64


@given(BATCHES, st.randoms(use_true_random=False))
def test_order_of_sequences_permutes_the_last_nodes_only(
    batch: list[Int64], random: Random
) -> None:
    order = list(range(len(batch)))
    random.shuffle(order)
    trie, shuffled = build_trie(batch), build_trie([batch[i] for i in order])
    for name in ("token_ids", "depths", "subtree_end", "branches"):
        assert getattr(shuffled, name).tolist() == getattr(trie, name).tolist()
    assert shuffled.last_nodes.tolist() == trie.last_nodes[order].tolist()


def test_duplicates_and_prefixes_of_others_add_no_nodes() -> None:
    long = np.array([3, 1, 2, 2], np.int64)
    trie = build_trie([long[:2], long, long[:1], long])
    assert trie.token_ids.tolist() == long.tolist()
    assert trie.last_nodes.tolist() == [1, 3, 0, 3]


@given(BATCHES)
def test_separate_last_tokens_are_nodes_that_no_other_sequence_passes(batch: list[Int64]) -> None:
    trie = build_trie(batch, separate_last_tokens=True)
    tokens = [tuple(sequence.tolist()) for sequence in batch]
    ends = dict(zip(trie.last_nodes.tolist(), tokens, strict=True))
    assert len(ends) == len(set(tokens))  # equal sequences share theirs
    inner = set()
    for node, sequence in ends.items():
        assert _tokens(trie, node) == sequence
        inner |= set(trie.path(node)[:-1].tolist())
    assert not inner & ends.keys()
    assert sorted([*inner, *ends]) == list(range(trie.num_nodes))
    assert len(inner) == len({_tokens(trie, node) for node in inner})
    nodes = np.arange(trie.num_nodes)
    for q in range(trie.num_nodes):
        assert (
            np.flatnonzero((nodes <= q) & (q < trie.subtree_end)).tolist() == trie.path(q).tolist()
        )


@given(SEQUENCES.filter(len))
def test_large_token_ids_survive(sequence: Int64) -> None:
    trie = build_trie([sequence, sequence[:1]])
    assert trie.token_ids.tolist() == sequence.tolist()


@given(SEQUENCES, SEQUENCES)
def test_sort_keys_order_and_share_prefixes_as_the_tokens_do(first: Int64, second: Int64) -> None:
    a, b = sort_key(first), sort_key(second)
    assert (key_length(a), key_length(b)) == (len(first), len(second))
    assert (a < b) == (first.tolist() < second.tolist())
    shared = common_prefix(a, b)
    assert shared == common_prefix(b, a)
    assert first[:shared].tolist() == second[:shared].tolist()
    assert shared == min(len(first), len(second)) or first[shared] != second[shared]
