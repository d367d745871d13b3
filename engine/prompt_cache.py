"""Keys and values of recent prompts, so that a later response to one of them runs only its own tokens.

RL clients often send one (prompt, response) a call. Whatever is queued together shares its prefix in the batch's trie;
this cache extends that to calls that come one after another. An entry is a prefix of token ids with the keys and values
of all its layers; a sequence reuses the longest prefix that it has in common with any entry, whole or in part, since in a
causal model keys depend on nothing that comes later. In sorted order that entry is a neighbour, as in the trie.

Entries are exact tokens, not hashes. They belong to one session, whose thread alone uses the cache; `prefixes` may be read
from others.

Dimensions: P tokens of a prefix, W the width of a layer's keys or values (heads times head size).
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwise.engine.trie import common_prefix

States = Sequence[NDArray[np.float32]]
"""float32[P, W] for each layer's keys and each layer's values, in the graph's order."""

# Shorter prefixes cost as much to find and join as to compute.
MIN_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedPrefix:
    """`key` is the prefix's sort key."""

    key: bytes
    states: States

    @property
    def num_bytes(self) -> int:
        return len(self.key) + sum(state.nbytes for state in self.states)


class PromptCache:
    """At most `max_bytes` of prefixes, the least recently used go first; 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[bytes, CachedPrefix] = OrderedDict()
        self._sorted: list[bytes] = []
        self.prefixes: tuple[bytes, ...] = ()

    def longest(self, key: bytes) -> tuple[CachedPrefix | None, int]:
        """The entry that shares the longest prefix with `key`, and how many tokens that is; (None, 0) below MIN_TOKENS."""
        at = bisect_left(self._sorted, key)
        neighbours = self._sorted[max(at - 1, 0) : at + 1]
        shared, nearest = max(((common_prefix(key, neighbour), neighbour) for neighbour in neighbours), default=(0, b""))
        if shared < MIN_TOKENS:
            return None, 0
        self._entries.move_to_end(nearest)
        return self._entries[nearest], shared

    def put(self, entry: CachedPrefix) -> None:
        """Keep `entry`, in place of those that it extends, unless it is larger than the whole cache."""
        if entry.num_bytes > self.max_bytes or entry.key in self._entries:
            return
        at = bisect_left(self._sorted, entry.key)
        if at and entry.key.startswith(self._sorted[at - 1]):
            self._remove(self._sorted[at - 1])
        self._entries[entry.key] = entry
        insort(self._sorted, entry.key)
        self.num_bytes += entry.num_bytes
        while self.num_bytes > self.max_bytes:
            self._remove(next(iter(self._entries)))
        self.prefixes = tuple(self._sorted)

    def has_room_for(self, num_tokens: int, bytes_per_token: int) -> bool:
        """Whether a prefix of so many tokens is worth computing states for."""
        return MIN_TOKENS <= num_tokens and num_tokens * (bytes_per_token + 4) <= self.max_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def _remove(self, key: bytes) -> None:
        self.num_bytes -= self._entries.pop(key).num_bytes
        del self._sorted[bisect_left(self._sorted, key)]


