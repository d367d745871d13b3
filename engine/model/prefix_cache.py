"""Keys and values of recent prompts, so that a later response to one of them runs only its own tokens.

RL clients often send one (prompt, response) a call. Whatever is queued together shares its prefix in the batch's trie;
this cache extends that to calls that come one after another. It is a trie too: a segment holds the states of the tokens by
which its prefix goes on from its parent's, so that a system prompt or the earlier turns of a conversation are held once. A
sequence reuses the longest prefix that it has in common with any entry, whole or in part, since in a causal model a
token's keys depend on nothing that comes later. In sorted order that entry is a neighbour.

Prefixes are compared token by token, not by a hash. A cache belongs to one session, whose thread alone uses it; `prefixes`
may be read from others.

Dimensions: n tokens of a segment, W the width of a layer's keys or values (heads times head size).
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwise.engine.trie import common_prefix

States = Sequence[NDArray[np.float32]]
"""float32[n, W] for each layer's keys and each layer's values, in the graph's order."""

# Shorter prefixes cost as much to find and join as to compute.
MIN_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """key: sort key of the whole prefix; states: of its tokens from `start` on; the tokens before are its parent's."""

    key: bytes
    start: int
    states: States
    parent: "Segment | None"

    @property
    def num_bytes(self) -> int:
        return len(self.key) + sum(state.nbytes for state in self.states)

    def chain(self) -> Iterator["Segment"]:
        """This segment, its parent, … up to one that starts at the first token."""
        segment: Segment | None = self
        while segment is not None:
            yield segment
            segment = segment.parent


class PromptCache:
    """At most `max_bytes` of segments, the least recently used go first; 0 keeps none.

    Using a segment uses its ancestors after it, so that none is dropped before those that go on from it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.prefixes: tuple[bytes, ...] = ()
        self._segments: OrderedDict[bytes, Segment] = OrderedDict()
        self._sorted: list[bytes] = []

    def longest(self, key: bytes) -> tuple[Segment | None, int]:
        """The segment that shares the longest prefix with `key`, and how many tokens; (None, 0) below MIN_TOKENS."""
        at = bisect_left(self._sorted, key)
        neighbours = self._sorted[max(at - 1, 0) : at + 1]
        shared, nearest = max(
            ((common_prefix(key, neighbour), neighbour) for neighbour in neighbours),
            default=(0, b""),
        )
        if shared < MIN_TOKENS:
            return None, 0
        # The first segment of the chain that has any of the shared tokens itself.
        segment = next(s for s in self._segments[nearest].chain() if s.start < shared)
        self._use(segment)
        return segment, shared

    def put(self, key: bytes, start: int, states: States) -> None:
        """Keep the states of the tokens from `start` on of the prefix `key`, whose tokens before are cached.

        Nothing is kept where that is larger than the whole cache, or where the tokens before have been dropped meanwhile.
        """
        parent, shared = self.longest(key)
        if shared != start or key in self._segments:
            return
        segment = Segment(key=key, start=start, states=states, parent=parent)
        if segment.num_bytes > self.max_bytes:
            return
        self._segments[key] = segment
        self._use(segment)
        insort(self._sorted, key)
        self.num_bytes += segment.num_bytes
        while self.num_bytes > self.max_bytes:
            oldest, dropped = self._segments.popitem(last=False)
            self.num_bytes -= dropped.num_bytes
            del self._sorted[bisect_left(self._sorted, oldest)]
        self.prefixes = tuple(self._sorted)

    def has_room_for(self, num_tokens: int, bytes_per_token: int) -> bool:
        """Whether a prefix of so many tokens is worth computing states for."""
        return num_tokens >= MIN_TOKENS and num_tokens * (bytes_per_token + 4) <= self.max_bytes

    def __len__(self) -> int:
        return len(self._segments)

    def _use(self, segment: Segment) -> None:
        for used in segment.chain():
            self._segments.move_to_end(used.key)
