"""What a batch costs and whom it should take next, by layout: plain arithmetic on token sequences.

A batch is bounded in token rows, which is what memory and time follow. In the trie layout a sequence costs the rows that
the batch does not have yet; in the padded layout every sequence costs as much as the longest.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Protocol

from kwise.engine.trie import KEY_BYTES, common_prefix, key_length

# A shared prefix shorter than this is a template's opening, which all conversations share.
_RELATED_TOKENS = 32
# The share of a padded batch that may be padding, and how many rows of it cost less than another pass.
_MAX_PADDING, _LITTLE_PADDING = 0.1, 64


class Filling(Protocol):
    """One batch being filled, with sequences by their sort keys."""

    rows: int

    def rows_with(self, key: bytes) -> int:
        """Rows of the batch if it took this sequence too."""

    def add(self, key: bytes) -> None:
        """Take it."""

    def fits(self, key: bytes, max_rows: int) -> bool:
        """Whether it should be taken, in a batch of about `max_rows`."""

    def distance(self, key: bytes) -> int:
        """How badly the sequence suits the batch's first one: 0 suits best."""


class TrieFilling:
    """Prefers what shares a prefix with the first sequence. `cached`: sort keys, ascending, of prefixes that cost nothing."""

    def __init__(self, cached: Sequence[bytes] = ()) -> None:
        self.rows = 0
        self._keys = list(cached)
        self._first, self._first_rows = b"", 0

    def rows_with(self, key: bytes) -> int:
        at = bisect_left(self._keys, key)
        # In sorted order the longest common prefix is with a neighbour.
        neighbours = self._keys[max(at - 1, 0) : at + 1]
        shared = max((common_prefix(key, neighbour) for neighbour in neighbours), default=0)
        return self.rows + key_length(key) - shared

    def add(self, key: bytes) -> None:
        self.rows = self.rows_with(key)
        self._first, self._first_rows = self._first or key, self._first_rows or self.rows
        insort(self._keys, key)

    def fits(self, key: bytes, max_rows: int) -> bool:
        """A long prompt is worth a larger batch, up to twice the first sequence: in the next one it would be computed again."""
        rows = self.rows_with(key)
        half = KEY_BYTES * ((key_length(self._first) + 1) // 2)
        return rows <= max_rows or (
            rows <= 2 * self._first_rows and key[:half] == self._first[:half]
        )

    def distance(self, key: bytes) -> int:
        related = KEY_BYTES * _RELATED_TOKENS
        return 0 if len(self._first) >= related and key[:related] == self._first[:related] else 1


class PaddedFilling:
    """Prefers what is as long as the first sequence, and takes what wastes little."""

    def __init__(self) -> None:
        self.rows = 0
        self._tokens = 0
        self._count = 0
        self._longest = 0
        self._first = 0

    def rows_with(self, key: bytes) -> int:
        return (self._count + 1) * max(self._longest, key_length(key))

    def add(self, key: bytes) -> None:
        self.rows = self.rows_with(key)
        self._count += 1
        self._tokens += key_length(key)
        self._longest = max(self._longest, key_length(key))
        self._first = self._first or key_length(key)

    def fits(self, key: bytes, max_rows: int) -> bool:
        rows = self.rows_with(key)
        padding = rows - self._tokens - key_length(key)
        return rows <= max_rows and padding <= max(_LITTLE_PADDING, _MAX_PADDING * rows)

    def distance(self, key: bytes) -> int:
        return abs(self._first - key_length(key))


def new_filling(layout: str, cached: Sequence[bytes] = ()) -> Filling:
    return TrieFilling(cached) if layout == "trie" else PaddedFilling()
