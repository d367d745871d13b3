"""Batches of token sequences as hypothesis draws them, for what works on their trie."""

import numpy as np
from hypothesis import strategies as st

from kwise.engine.trie import Int64

VOCAB = 6
_EMPTY: list[int] = []


@st.composite
def _batches(draw: st.DrawFn) -> list[Int64]:
    """With shared prefixes of many lengths, duplicates, and sequences that begin others."""
    sequences: list[list[int]] = []
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.sampled_from([_EMPTY, *sequences]))
        kept = start[: draw(st.integers(0, len(start)))]
        suffix = draw(st.lists(st.integers(0, VOCAB - 1), min_size=0 if kept else 1, max_size=6))
        # Runs make sequences longer than a tile without costing hypothesis many choices.
        run = [draw(st.integers(0, VOCAB - 1))] * draw(st.sampled_from([0, 0, 0, 5, 20, 70, 170]))
        sequences.append(kept + suffix + run)
    return [np.array(sequence, np.int64) for sequence in sequences]


BATCHES = _batches()
