"""Batches of token sequences, drawn by hypothesis, for tests of code that works on their trie."""

import numpy as np
from hypothesis import strategies as st

from kwise.engine.trie import Int64

VOCAB = 6
_EMPTY: list[int] = []


@st.composite
def _batches(draw: st.DrawFn) -> list[Int64]:
    """Draw sequences that share prefixes, are equal, or are prefixes of one another."""
    sequences: list[list[int]] = []
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.sampled_from([_EMPTY, *sequences]))
        kept = start[: draw(st.integers(0, len(start)))]
        suffix = draw(st.lists(st.integers(0, VOCAB - 1), min_size=0 if kept else 1, max_size=6))
        # Repeated tokens make a sequence longer than a tile and cost hypothesis few choices.
        run = [draw(st.integers(0, VOCAB - 1))] * draw(st.sampled_from([0, 0, 0, 5, 20, 70, 170]))
        sequences.append(kept + suffix + run)
    return [np.array(sequence, np.int64) for sequence in sequences]


BATCHES = _batches()
