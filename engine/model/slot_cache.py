"""A prompt cache whose keys and values are in slots of tables on a device.

Python holds the numbers of the slots only: the states of a segment are one int64[n] array of them.
So the prompts of a batch are put into the cache when its pass starts, not when it ends: the next
batch, which is prepared meanwhile, can refer to slots that are written by then. If the pass fails,
its segments are revoked.

A slot belongs to one segment at a time. It becomes free when nothing refers to its segment any
more: neither the cache nor a batch that was planned with it and may still run.
"""

import weakref
from collections import deque
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from kwise.engine.model.prefix_cache import MIN_TOKENS, PromptCache, Segment, States
from kwise.engine.trie import Int64


class Reservation:
    """Slots for the new entries of one batch. Those that nobody keeps become free at the end."""

    def __init__(self, slots: Int64, free: "deque[Int64]") -> None:
        self.slots = slots
        self._finalizer = weakref.finalize(self, free.append, slots)
        self._finalizer.atexit = False
        self._free = free

    def keep(self, is_kept: NDArray[np.bool_]) -> None:
        """Free the slots that no segment keeps, and leave the others to their segments."""
        self._finalizer.detach()
        self._free.append(self.slots[~is_kept])


class SlotCache(PromptCache):
    """A prompt cache of the slots 1 to `num_slots` - 1; the least recently used are freed first.

    Slot 0 is for padding.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__(max_bytes=1 << 62)  # the slots are the limit
        self.capacity = num_slots - 1
        self._free: deque[Int64] = deque([np.arange(1, num_slots)])
        self._revoked: weakref.WeakSet[Segment] = weakref.WeakSet()

    def has_room_for(self, num_tokens: int, bytes_per_token: int) -> bool:
        return MIN_TOKENS <= num_tokens <= self.capacity

    def reserve(self, size: int, used: Collection[bytes]) -> Reservation | None:
        """Reserve slots for a batch, dropping segments if too few are free.

        Args:
            used: the keys of the segments that the batch reads. They are not dropped.

        Returns:
            None if there are too few slots. Slots of other batches that are not over may be among
            those that are missing.
        """
        with self._lock:
            while (slots := self._take(size)) is None:
                oldest = next(iter(self._segments), None)
                if oldest is None or oldest in used:
                    break
                self._drop_oldest()
            self.prefixes = tuple(self._sorted)
        return None if slots is None else Reservation(slots, self._free)

    def put(self, key: bytes, start: int, states: States) -> Segment | None:
        segment = super().put(key, start, states)
        if segment is not None:
            (slots,) = states
            weakref.finalize(segment, self._free.append, slots).atexit = False
        return segment

    def revoke(self, segments: Iterable[Segment]) -> None:
        """Remove the segments of a pass that failed. Batches that were planned with them notice."""
        with self._lock:
            for segment in segments:
                self._revoked.add(segment)
                if self._segments.get(segment.key) is segment:
                    self._drop(segment.key)
            self.prefixes = tuple(self._sorted)

    def is_revoked(self, segment: Segment) -> bool:
        return segment in self._revoked

    def _take(self, size: int) -> Int64 | None:
        """Take free slots; None, and take none, if there are fewer."""
        taken, num_taken = [np.empty(0, np.int64)], 0
        while num_taken < size and self._free:
            taken.append(self._free.popleft())
            num_taken += len(taken[-1])
        slots = np.concatenate(taken)
        self._free.appendleft(slots[size:] if num_taken >= size else slots)
        return slots[:size] if num_taken >= size else None
