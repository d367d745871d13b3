"""A cache of the keys and values of recent prompts.

A later response to a cached prompt runs only its own tokens. Requests that are queued together
already share prefixes in their batch's trie; RL clients often send one (prompt, response) per call,
and the cache extends the sharing to calls that follow one another.

The cache is itself a trie. A segment holds the states of the tokens by which its prefix extends its
parent's, so a shared system prompt or the earlier turns of a conversation are stored once. A
sequence reuses the longest prefix that it shares with any entry, whole or in part, because in a
causal model the keys of a token do not depend on later tokens. In sorted order that entry is a
neighbour. Prefixes are compared token by token, not by a hash.

Dimensions: n tokens of a segment, W the width of a layer's keys or values (heads times head size).
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

from numpy.typing import NDArray

from kwise.engine.cache_usage import CacheUsage
from kwise.engine.trie import common_prefix

States = Sequence[NDArray[Any]]
"""float32[n, W] for each layer's keys and each layer's values, in the graph's order.

If they are in slots on a device: one array, the int64[n] numbers of the slots.
"""

# Shorter prefixes take as long to find and join as to compute.
MIN_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Segment:
    """The states of a prefix's tokens from `start` on; its ancestors have those before.

    key: the sort key of the whole prefix.
    """

    key: bytes
    start: int
    states: States
    parent: "Segment | None"

    @property
    def num_bytes(self) -> int:
        return len(self.key) + sum(state.nbytes for state in self.states)

    def chain(self) -> Iterator["Segment"]:
        """Yield this segment, its parent, and so on to the segment that starts at token 0."""
        segment: Segment | None = self
        while segment is not None:
            yield segment
            segment = segment.parent


class PromptCache:
    """At most `max_bytes` of segments; the least recently used are dropped first.

    With 0 bytes nothing is cached.

    Using a segment marks its ancestors as used after it, so none is dropped before its descendants.
    A cache belongs to one session. One of the session's threads may look up a batch while another
    stores the prompts of the batch before it. Segments never change, so one that was found stays
    right after it was dropped.

    prefixes: the sort keys of all cached prefixes, ascending.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.prefixes: tuple[bytes, ...] = ()
        self._segments: OrderedDict[bytes, Segment] = OrderedDict()
        self._sorted: list[bytes] = []
        self._lock = RLock()

    def longest(self, key: bytes) -> tuple[Segment | None, int]:
        """Return the segment with the longest common prefix with `key`, and that number of tokens.

        Returns (None, 0) if they are fewer than MIN_TOKENS. Marks the segment as used.
        """
        with self._lock:
            at = bisect_left(self._sorted, key)
            neighbours = self._sorted[max(at - 1, 0) : at + 1]
            shared, nearest = max(
                ((common_prefix(key, neighbour), neighbour) for neighbour in neighbours),
                default=(0, b""),
            )
            if shared < MIN_TOKENS:
                return None, 0
            # The first segment of the chain that holds any of the shared tokens itself.
            segment = next(s for s in self._segments[nearest].chain() if s.start < shared)
            self._use(segment)
            return segment, shared

    def put(self, key: bytes, start: int, states: States) -> Segment | None:
        """Store the states of the prefix `key` from token `start` on; the tokens before are cached.

        Returns:
            The segment. None, and nothing is stored, if the states exceed the whole cache, or if
            the tokens before have been dropped meanwhile.
        """
        with self._lock:
            parent, shared = self.longest(key)
            if shared != start or key in self._segments:
                return None
            segment = Segment(key=key, start=start, states=states, parent=parent)
            if segment.num_bytes > self.max_bytes:
                return None
            self._segments[key] = segment
            self._use(segment)
            insort(self._sorted, key)
            self.num_bytes += segment.num_bytes
            while self.num_bytes > self.max_bytes:
                self._drop_oldest()
            self.prefixes = tuple(self._sorted)
            return segment

    def has_room_for(self, num_tokens: int, bytes_per_token: int) -> bool:
        """Return whether a prefix of this length is worth caching and fits into an empty cache."""
        return (
            num_tokens >= MIN_TOKENS
            # 4: the bytes of a token in a sort key.
            and num_tokens * (bytes_per_token + 4) <= self.max_bytes
        )

    def is_revoked(self, segment: Segment) -> bool:
        """Return whether the pass that should compute the segment's states has failed."""
        return False  # states in host memory are stored after their pass

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def usage(self) -> CacheUsage:
        """The prefixes that are cached, and the memory that their keys and values take."""
        return CacheUsage(entries=len(self), num_bytes=self.num_bytes, max_bytes=self.max_bytes)

    def _drop_oldest(self) -> None:
        self._drop(next(iter(self._segments)))

    def _drop(self, key: bytes) -> None:
        self.num_bytes -= self._segments.pop(key).num_bytes
        del self._sorted[bisect_left(self._sorted, key)]

    def _use(self, segment: Segment) -> None:
        for used in segment.chain():
            self._segments.move_to_end(used.key)
