"""The batches of a window: each sequence once, within the limit, prompts undivided."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kwise.bulk.scorers.plan import batches_by_length, trie_batches
from kwise.engine.model.batch_builder import PaddedBatchBuilder, TrieBatchBuilder
from kwise.engine.trie import build_trie, key_length, sort_key

_TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@st.composite
def _groups(draw: st.DrawFn) -> list[list[np.ndarray]]:
    """Groups of sequences that share a prompt with each other, and sometimes with other groups."""
    prompts = draw(st.lists(_TOKENS, min_size=1, max_size=4))
    return [
        [
            np.array(prompt + response, np.int64)
            for response in draw(st.lists(_TOKENS, min_size=1, max_size=5))
        ]
        for prompt in draw(st.lists(st.sampled_from(prompts), max_size=6))
    ]


def _numbered(groups: list[list[np.ndarray]]) -> tuple[list[list[int]], list[np.ndarray]]:
    sequences = [sequence for group in groups for sequence in group]
    indices = iter(range(len(sequences)))
    return [[next(indices) for _ in group] for group in groups], sequences


@given(_groups(), st.integers(16, 60))
def test_batches_of_the_trie_layout(groups: list[list[np.ndarray]], max_rows: int) -> None:
    numbered, sequences = _numbered(groups)
    keys = [sort_key(sequence) for sequence in sequences]
    batches = trie_batches(numbered, keys, max_rows)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sequences)))
    batch_of = {index: number for number, batch in enumerate(batches) for index in batch}
    for batch in batches:
        rows = build_trie([sequences[index] for index in batch]).num_nodes
        longest = max(len(sequences[index]) for index in batch)
        assert rows <= max(max_rows, 2 * longest)
    for group in numbered:
        if build_trie([sequences[index] for index in group]).num_nodes <= max_rows:
            assert len({batch_of[index] for index in group}) == 1


@given(_groups(), st.integers(16, 60))
def test_batches_by_length(groups: list[list[np.ndarray]], max_rows: int) -> None:
    _, sequences = _numbered(groups)
    keys = [sort_key(sequence) for sequence in sequences]
    batches = batches_by_length(keys, lambda cached: PaddedBatchBuilder(), max_rows)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sequences)))
    for batch in batches:
        lengths = [key_length(keys[index]) for index in batch]
        assert len(batch) == 1 or len(batch) * max(lengths) <= max_rows


def test_a_plan_depends_on_the_sequences_alone() -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 9, 20) for _ in range(12)]
    groups = [[np.concatenate([p, rng.integers(0, 9, 5)]) for _ in range(4)] for p in prompts]
    numbered, sequences = _numbered(groups)
    keys = [sort_key(sequence) for sequence in sequences]
    plans = [trie_batches(numbered, keys, 100) for _ in range(2)]
    assert plans[0] == plans[1]
    # Two groups of 40 rows fill a batch of 100. Dividing groups would compute prompts twice.
    total = sum(build_trie([sequences[index] for index in batch]).num_nodes for batch in plans[0])
    assert total == build_trie(sequences).num_nodes or len(plans[0]) == 6


def test_the_rows_of_a_batch_are_counted_as_the_servers_builder_counts_them() -> None:
    builder = TrieBatchBuilder()
    for tokens in ([1, 2, 3], [1, 2, 4], [1, 5]):
        builder.add(sort_key(np.array(tokens, np.int64)))
    assert builder.rows == 5
