"""Mean pooling: where a response begins, and the mean over its tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.engine.model.pooling import first_read, read_tokens, response_start
from kwise.engine.trie import build_trie

HEADER = (1, 7)
TOKENS = st.lists(st.integers(0, 3) | st.sampled_from([1, 7]), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("token_ids", "start", "first"),
    [
        ([1, 7, 5, 6], 2, 2),
        ([1, 5, 1, 7, 5, 1, 7, 6], 7, 7),  # the last header counts
        ([5, 6, 8], 0, 0),  # no header: all of it
        ([7], 0, 0),  # shorter than the header
        ([5, 1, 7], 3, 2),  # nothing after it: the last token
        ([1, 1, 7, 7], 3, 3),
    ],
)
def test_where_a_response_begins(token_ids: list[int], start: int, first: int) -> None:
    assert response_start(token_ids, HEADER) == start
    assert first_read(token_ids, HEADER) == first


def test_without_pooling_the_last_token_is_read() -> None:
    assert first_read([1, 7, 5, 6], None) == 3


@given(st.lists(TOKENS, min_size=1, max_size=6), st.booleans())
def test_each_sequence_reads_its_own_tokens(sequences: list[list[int]], pooled: bool) -> None:
    header = HEADER if pooled else None
    trie = build_trie([np.array(sequence, np.int64) for sequence in sequences])
    read = read_tokens(trie, sequences, header)
    tokens = np.split(trie.token_ids[read.nodes[read.places]], np.cumsum(read.counts)[:-1])
    expected = [sequence[first_read(sequence, header) :] for sequence in sequences]
    assert [part.tolist() for part in tokens] == expected


@given(st.lists(st.lists(st.integers(1, 5)), min_size=1, max_size=8))
def test_the_head_reads_no_node_twice(responses: list[list[int]]) -> None:
    """Conversations without a header are read whole, and their prompt is long."""
    sequences = [[*range(10, 90), *response] for response in responses]
    trie = build_trie([np.array(sequence, np.int64) for sequence in sequences])
    nodes = read_tokens(trie, sequences, HEADER).nodes
    assert sorted(nodes.tolist()) == list(range(trie.num_nodes))


@given(st.lists(TOKENS, min_size=1, max_size=8), st.sampled_from([None, 3]))
def test_the_mean_is_that_of_each_sequence(sequences: list[list[int]], members: int | None) -> None:
    trie = build_trie([np.array(sequence, np.int64) for sequence in sequences])
    shape = (trie.num_nodes,) if members is None else (trie.num_nodes, members)
    rewards = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    read = read_tokens(trie, sequences, HEADER)
    means = read.mean(rewards[read.nodes])
    expected = [
        rewards[trie.path(int(node))[first_read(sequence, HEADER) :]].mean(0)
        for sequence, node in zip(sequences, trie.last_nodes, strict=True)
    ]
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
    assert means.dtype == np.float32
