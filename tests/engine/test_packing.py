"""The trie holds every distinct prefix once, and packing it for tiles of attention changes no result."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as random_arrays

from kwise.engine.packing import Int64, Trie, build_trie, pack

VOCAB = 6
EMPTY: list[int] = []


@st.composite
def _batches(draw: st.DrawFn) -> list[Int64]:
    """Batches with shared prefixes of many lengths, duplicates, and sequences that begin others."""
    sequences: list[list[int]] = []
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.sampled_from([EMPTY, *sequences]))
        kept = start[: draw(st.integers(0, len(start)))]
        suffix = draw(st.lists(st.integers(0, VOCAB - 1), min_size=0 if kept else 1, max_size=6))
        # Runs make sequences longer than a tile without costing hypothesis many choices.
        run = [draw(st.integers(0, VOCAB - 1))] * draw(st.sampled_from([0, 0, 0, 5, 70, 150]))
        sequences.append(kept + suffix + run)
    return [np.array(sequence, np.int64) for sequence in sequences]


BATCHES = _batches()
CLASSES = st.integers(1, 6)


def _prefixes(batch: list[Int64]) -> set[tuple[int, ...]]:
    return {tuple(sequence[: n + 1].tolist()) for sequence in batch for n in range(len(sequence))}


def _path(trie: Trie, row: int) -> list[int]:
    """The rows from the root to `row`."""
    return [*trie.ancestors(row).tolist(), row]


def _tokens(trie: Trie, row: int) -> tuple[int, ...]:
    return tuple(trie.input_ids[_path(trie, row)].tolist())


@given(BATCHES)
def test_every_distinct_prefix_is_exactly_one_row(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    rows = [_tokens(trie, row) for row in range(trie.num_rows)]
    assert len(rows) == len(set(rows))
    assert set(rows) == _prefixes(batch)


@given(BATCHES)
def test_path_to_the_last_row_gives_back_each_sequence(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    assert len(trie.last_rows) == len(batch)
    for sequence, last in zip(batch, trie.last_rows, strict=True):
        assert _tokens(trie, int(last)) == tuple(sequence.tolist())


@given(BATCHES)
def test_position_is_the_depth(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    for row in range(trie.num_rows):
        path = _path(trie, row)
        assert trie.positions[path].tolist() == list(range(len(path)))


@given(BATCHES)
def test_row_is_ancestor_exactly_within_its_range(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    for q in range(trie.num_rows):
        in_range = [k for k in range(trie.num_rows) if k <= q < trie.ends[k]]
        assert in_range == _path(trie, q)


@given(BATCHES)
def test_arrays_are_int64_and_one_entry_a_row(batch: list[Int64]) -> None:
    trie = build_trie(batch)
    for array in (trie.input_ids, trie.positions, trie.ends):
        assert array.shape == (len(_prefixes(batch)),)
        assert array.dtype == np.int64
    assert trie.last_rows.dtype == np.int64


@given(BATCHES, st.randoms(use_true_random=False))
def test_order_of_sequences_permutes_the_last_rows_only(batch: list[Int64], random: Any) -> None:
    order = list(range(len(batch)))
    random.shuffle(order)
    trie, shuffled = build_trie(batch), build_trie([batch[i] for i in order])
    assert shuffled.input_ids.tolist() == trie.input_ids.tolist()
    assert shuffled.positions.tolist() == trie.positions.tolist()
    assert shuffled.ends.tolist() == trie.ends.tolist()
    assert shuffled.last_rows.tolist() == trie.last_rows[order].tolist()


def test_duplicates_and_prefixes_of_others_add_no_rows() -> None:
    long = np.array([3, 1, 2, 2], np.int64)
    trie = build_trie([long[:2], long, long[:1], long])
    assert trie.input_ids.tolist() == long.tolist()
    assert trie.last_rows.tolist() == [1, 3, 0, 3]


@given(random_arrays(np.int64, st.integers(1, 6), elements=st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 2**31 - 1])))
def test_large_token_ids_survive(sequence: Int64) -> None:
    trie = build_trie([sequence, sequence[:1]])
    assert trie.input_ids.tolist() == sequence.tolist()


@given(BATCHES, CLASSES)
def test_every_row_sees_its_ancestors_and_itself_once(batch: list[Int64], num_classes: int) -> None:
    trie = build_trie(batch)
    packed = pack(trie, num_classes)
    row_at, seen_at = [], []
    for c in range(num_classes):
        for queries, keys in zip(packed[f"queries_{c}"], packed[f"keys_{c}"], strict=True):
            for q in queries:
                row_at.append(int(q))
                seen_at.append(sorted(int(k) for k in keys if k >= 0 and k <= q < trie.ends[k]))
    assert len(packed["outputs"]) == trie.num_rows
    for row, output in enumerate(packed["outputs"]):
        assert row_at[output] == row
        assert seen_at[output] == _path(trie, row)


@given(BATCHES, CLASSES)
def test_padding_is_the_last_query_again_and_minus_one_for_keys(batch: list[Int64], num_classes: int) -> None:
    trie = build_trie(batch)
    packed = pack(trie, num_classes)
    names = {f"{kind}_{c}" for kind in ("queries", "keys") for c in range(num_classes)}
    assert packed.keys() == {"input_ids", "positions", "ends", "last_rows", "outputs", *names}
    for c in range(num_classes):
        assert len(packed[f"queries_{c}"]) == len(packed[f"keys_{c}"]) >= 1
        for queries, keys in zip(packed[f"queries_{c}"], packed[f"keys_{c}"], strict=True):
            real = len(set(queries.tolist()))
            assert queries.tolist() == [min(queries[0] + i, queries[0] + real - 1) for i in range(len(queries))]
            num_keys = int(trie.positions[queries[0]]) + real
            assert (keys[:num_keys] >= 0).all()
            assert (keys[num_keys:] == -1).all()
    assert all(array.dtype == np.int64 for array in packed.values())


def _softmax(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _naive(sequence: Int64, embedding: Any, rotations: Any, layers: Any) -> Any:
    """Hidden state of the last token: causal attention over the one sequence, layer upon layer."""
    hidden = embedding[sequence] + rotations[: len(sequence)]
    causal = np.tril(np.ones((len(sequence), len(sequence)), bool))
    for wq, wk, wv in layers:
        scores = np.where(causal, (hidden @ wq) @ (hidden @ wk).T, -np.inf)
        hidden = hidden + np.tanh(_softmax(scores) @ (hidden @ wv))
    return hidden[-1]


def _packed(packed: dict[str, Int64], num_classes: int, embedding: Any, rotations: Any, layers: Any) -> Any:
    """The same from the packed arrays: gather, masked attention per tile, and `outputs` to bring rows home."""
    hidden = embedding[packed["input_ids"]] + rotations[packed["positions"]]
    for wq, wk, wv in layers:
        query, key, value = hidden @ wq, hidden @ wk, hidden @ wv
        attended = []
        for c in range(num_classes):
            queries, keys = packed[f"queries_{c}"], packed[f"keys_{c}"]
            ends = packed["ends"][keys]
            visible = (keys >= 0)[:, None] & (keys[:, None] <= queries[..., None]) & (queries[..., None] < ends[:, None])
            scores = np.where(visible, query[queries] @ key[keys].swapaxes(1, 2), -np.inf)
            attended.append((_softmax(scores) @ value[keys]).reshape(-1, hidden.shape[1]))
        hidden = hidden + np.tanh(np.concatenate(attended)[packed["outputs"]])
    return hidden[packed["last_rows"]]


@given(BATCHES, CLASSES, st.integers(0, 99))
def test_attention_over_packed_rows_is_attention_over_each_sequence(batch: list[Int64], num_classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    width, longest = 5, max(map(len, batch))
    embedding, rotations = random.normal(size=(VOCAB, width)), random.normal(size=(longest, width))
    layers = random.normal(size=(2, 3, width, width))
    expected = [_naive(sequence, embedding, rotations, layers) for sequence in batch]
    actual = _packed(pack(build_trie(batch), num_classes), num_classes, embedding, rotations, layers)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
@pytest.mark.parametrize("num_classes", [1, 4])
def test_large_batches_see_their_ancestors(num_classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    system = random.integers(0, VOCAB, random.integers(1, 300))
    batch = []
    for _ in range(random.integers(1, 5)):
        prompt = np.concatenate([system, random.integers(0, VOCAB, random.integers(1, 200))])
        lengths = random.integers(1, 120, random.integers(1, 5))
        batch.extend(np.concatenate([prompt, random.integers(0, VOCAB, length)]) for length in lengths)
    trie = build_trie(batch)
    packed = pack(trie, num_classes)
    rows = np.arange(trie.num_rows)
    seen = np.zeros((trie.num_rows, trie.num_rows), np.int64)
    slot = np.concatenate([packed[f"queries_{c}"].reshape(-1) for c in range(num_classes)])
    assert (slot[packed["outputs"]] == rows).all()
    done = np.zeros(trie.num_rows, bool)
    for c in range(num_classes):
        for queries, keys in zip(packed[f"queries_{c}"], packed[f"keys_{c}"], strict=True):
            real = keys[keys >= 0]
            fresh = np.unique(queries)[~done[np.unique(queries)]]
            visible = (real <= fresh[:, None]) & (fresh[:, None] < trie.ends[real])
            np.add.at(seen, (np.repeat(fresh, len(real)), np.tile(real, len(fresh))), visible.reshape(-1))
            done[fresh] = True
    expected = (rows <= rows[:, None]) & (rows[:, None] < trie.ends)
    assert (seen == expected).all()
