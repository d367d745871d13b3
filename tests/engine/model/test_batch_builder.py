"""A batch builder counts the rows that the session computes, in each layout."""

from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kwise.engine.model.batch_builder import (
    PaddedBatchBuilder,
    SeparateBatchBuilder,
    TrieBatchBuilder,
)
from kwise.engine.model.layouts.trie import TrieLayout
from kwise.engine.trie import Int64, sort_key
from tests.batches import BATCHES

Tokens = tuple[int, ...]


def _prefixes(sequences: Iterable[Int64]) -> set[Tokens]:
    return {
        tuple(sequence[: n + 1].tolist()) for sequence in sequences for n in range(len(sequence))
    }


def _keys(sequences: Iterable[Int64]) -> list[bytes]:
    return sorted({sort_key(sequence) for sequence in sequences})


@given(BATCHES, st.data())
def test_a_trie_costs_its_distinct_prefixes_but_for_the_cached_ones(
    sequences: list[Int64], data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(st.sampled_from(sequences), max_size=4))
    cached = [sequence[: data.draw(st.integers(0, len(sequence)))] for sequence in drawn]
    batch = TrieBatchBuilder(_keys(cached))
    for taken, sequence in enumerate(sequences, start=1):
        expected = len(_prefixes(sequences[:taken]) - _prefixes(cached))
        assert batch.rows_with(sort_key(sequence)) == expected
        batch.add(sort_key(sequence))
        assert batch.rows == expected


@given(BATCHES)
def test_padded_sequences_cost_as_much_as_the_longest(sequences: list[Int64]) -> None:
    batch = PaddedBatchBuilder()
    for taken, sequence in enumerate(sequences, start=1):
        expected = taken * max(len(other) for other in sequences[:taken])
        assert batch.rows_with(sort_key(sequence)) == expected
        batch.add(sort_key(sequence))
        assert batch.rows == expected


@given(BATCHES)
def test_sequences_that_run_one_at_a_time_cost_their_own_tokens(sequences: list[Int64]) -> None:
    batch = SeparateBatchBuilder()
    for taken, sequence in enumerate(sequences, start=1):
        expected = sum(len(other) for other in sequences[:taken])
        assert batch.fits(sort_key(sequence), expected)
        assert not batch.fits(sort_key(sequence), expected - 1)
        assert batch.distance(sort_key(sequence)) == 0, "any two suit each other"
        batch.add(sort_key(sequence))
        assert batch.rows == expected


def test_cached_prefixes_make_no_sequence_related() -> None:
    """A sequence suits a batch by what it shares with the first one, not by what is cached."""
    prompt, other = np.arange(40), np.arange(100, 140)
    batch = TrieLayout.new_batch(_keys([other]))
    batch.add(sort_key(prompt))
    assert batch.distance(sort_key(np.append(prompt, 1))) < batch.distance(
        sort_key(np.append(other, 1))
    )


def test_the_cached_prefixes_are_not_changed() -> None:
    cached = _keys([np.arange(40)])
    batch = TrieBatchBuilder(cached)
    batch.add(sort_key(np.arange(50)))
    assert cached == _keys([np.arange(40)])


def test_a_long_prompt_is_worth_a_batch_of_twice_its_length() -> None:
    """Nine responses to a prompt longer than a batch ran one by one, each with the prompt again."""
    prompt = np.arange(100)
    batch = TrieBatchBuilder()
    batch.add(sort_key(np.append(prompt, 1000)))
    relative, unrelated = (
        sort_key(np.append(prompt, np.arange(2000, 2060))),
        sort_key(np.arange(500, 560)),
    )
    assert batch.fits(relative, max_rows=50) and not batch.fits(unrelated, max_rows=50)
    batch.add(relative)
    assert not batch.fits(sort_key(np.append(prompt, np.arange(3000, 3060))), max_rows=50)
