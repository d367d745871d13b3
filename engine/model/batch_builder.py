"""The cost of a batch and the sequences that suit it, for each layout, by arithmetic on sort keys.

A batch is bounded in token rows, because memory and time follow them. In the trie layout a sequence
costs the rows that the batch does not have yet. In the padded layout every sequence costs as many
rows as the longest one. Sequences that run one at a time cost their own tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Protocol

from kwise.engine.trie import KEY_BYTES, common_prefix, key_length

# Two sequences are related if they share this many tokens. All conversations share a template's
# opening, which is shorter.
_RELATED_TOKENS = 32
# At most this share of a padded batch may be padding, unless it is so few rows that another pass
# of the model would cost more.
_MAX_PADDING, _MIN_PADDING_ROWS = 0.1, 64


class BatchBuilder(Protocol):
    """A batch under construction. A sequence is represented by its sort key."""

    rows: int

    def rows_with(self, key: bytes) -> int:
        """Return the rows that the batch has if it takes this sequence too."""

    def add(self, key: bytes) -> None:
        """Add a sequence to the batch."""

    def fits(self, key: bytes, max_rows: int) -> bool:
        """Return True if a batch of about `max_rows` should take this sequence."""

    def distance(self, key: bytes) -> int:
        """Return how badly the sequence suits the first one of the batch; 0 is best."""


NewBatchBuilder = Callable[[Sequence[bytes]], BatchBuilder]
"""Make an empty batch. The argument holds the sort keys, ascending, of cached prefixes."""


class TrieBatchBuilder:
    """A batch in the trie layout. It prefers sequences that share a prefix with its first one.

    cached: sort keys, ascending, of prefixes whose rows cost nothing.
    """

    def __init__(self, cached: Sequence[bytes] = ()) -> None:
        self.rows = 0
        self._keys = list(cached)
        self._first, self._first_rows = b"", 0
        self._asked: tuple[bytes, int] | None = None  # the last answer of `rows_with`

    def rows_with(self, key: bytes) -> int:
        if self._asked is not None and self._asked[0] is key:
            return self._asked[1]  # `add` follows `fits`
        at = bisect_left(self._keys, key)
        # In sorted order the longest common prefix is with a neighbour.
        neighbours = self._keys[max(at - 1, 0) : at + 1]
        shared = max((common_prefix(key, neighbour) for neighbour in neighbours), default=0)
        self._asked = key, self.rows + key_length(key) - shared
        return self._asked[1]

    def add(self, key: bytes) -> None:
        self.rows = self.rows_with(key)
        self._first, self._first_rows = self._first or key, self._first_rows or self.rows
        insort(self._keys, key)
        self._asked = None

    def fits(self, key: bytes, max_rows: int) -> bool:
        """Allow twice the rows of the first sequence to those that share half of it.

        A long prompt is worth a larger batch, because the next batch would compute it again.
        """
        rows = self.rows_with(key)
        half = KEY_BYTES * ((key_length(self._first) + 1) // 2)
        shares_half = key[:half] == self._first[:half]
        return rows <= max_rows or (rows <= 2 * self._first_rows and shares_half)

    def distance(self, key: bytes) -> int:
        related = KEY_BYTES * _RELATED_TOKENS
        is_related = len(self._first) >= related and key[:related] == self._first[:related]
        return 0 if is_related else 1


class PaddedBatchBuilder:
    """A batch in the padded layout. It prefers sequences that are as long as its first one."""

    def __init__(self) -> None:
        self.rows = 0
        self._num_tokens = 0
        self._num_sequences = 0
        self._max_length = 0
        self._first_length = 0

    def rows_with(self, key: bytes) -> int:
        return (self._num_sequences + 1) * max(self._max_length, key_length(key))

    def add(self, key: bytes) -> None:
        self.rows = self.rows_with(key)
        self._num_sequences += 1
        self._num_tokens += key_length(key)
        self._max_length = max(self._max_length, key_length(key))
        self._first_length = self._first_length or key_length(key)

    def fits(self, key: bytes, max_rows: int) -> bool:
        rows = self.rows_with(key)
        padding = rows - self._num_tokens - key_length(key)
        return rows <= max_rows and padding <= max(_MIN_PADDING_ROWS, _MAX_PADDING * rows)

    def distance(self, key: bytes) -> int:
        return abs(self._first_length - key_length(key))


class SeparateBatchBuilder:
    """A batch of sequences that run one after another. Any two suit each other."""

    def __init__(self) -> None:
        self.rows = 0

    def rows_with(self, key: bytes) -> int:
        return self.rows + key_length(key)

    def add(self, key: bytes) -> None:
        self.rows = self.rows_with(key)

    def fits(self, key: bytes, max_rows: int) -> bool:
        return self.rows_with(key) <= max_rows

    def distance(self, key: bytes) -> int:
        return 0
