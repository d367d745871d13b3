"""What a batch costs and whom it should take next, by layout: plain arithmetic on token sequences.

A batch is bounded in token rows, which is what memory and time follow. In the trie layout a sequence costs the rows that
the batch does not have yet; in the padded layout every sequence costs as much as the longest.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Protocol

from kwise.engine.trie import Int64, common_prefix, sort_key

# A shared prefix shorter than this is a template's opening, which all conversations share.
_RELATED_TOKENS = 32


class Filling(Protocol):
    """One batch being filled."""

    rows: int

    def rows_with(self, token_ids: Int64) -> int:
        """Rows of the batch if it took this sequence too."""

    def add(self, token_ids: Int64) -> None:
        """Take it."""

    def distance(self, token_ids: Int64) -> int:
        """How badly the sequence suits the batch's first one: 0 suits best."""


class TrieFilling:
    """Prefers what shares a prefix with the first sequence. `cached`: sort keys, ascending, of prefixes that cost nothing."""

    def __init__(self, cached: Sequence[bytes] = ()) -> None:
        self.rows = 0
        self._keys = list(cached)
        self._first = b""

    def rows_with(self, token_ids: Int64) -> int:
        key = sort_key(token_ids)
        at = bisect_left(self._keys, key)
        # In sorted order the longest common prefix is with a neighbour.
        neighbours = self._keys[max(at - 1, 0) : at + 1]
        shared = max((common_prefix(key, neighbour) for neighbour in neighbours), default=0)
        return self.rows + len(token_ids) - shared

    def add(self, token_ids: Int64) -> None:
        self.rows = self.rows_with(token_ids)
        key = sort_key(token_ids)
        self._first = self._first or key
        insort(self._keys, key)

    def distance(self, token_ids: Int64) -> int:
        return 0 if common_prefix(self._first, sort_key(token_ids)) >= _RELATED_TOKENS else 1


class PaddedFilling:
    """Prefers what is as long as the first sequence."""

    def __init__(self) -> None:
        self.rows = 0
        self._count = 0
        self._longest = 0
        self._first = 0

    def rows_with(self, token_ids: Int64) -> int:
        return (self._count + 1) * max(self._longest, len(token_ids))

    def add(self, token_ids: Int64) -> None:
        self.rows = self.rows_with(token_ids)
        self._count += 1
        self._longest = max(self._longest, len(token_ids))
        self._first = self._first or len(token_ids)

    def distance(self, token_ids: Int64) -> int:
        return abs(self._first - len(token_ids))


def new_filling(layout: str, cached: Sequence[bytes] = ()) -> Filling:
    return TrieFilling(cached) if layout == "trie" else PaddedFilling()
