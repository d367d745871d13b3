"""A prompt cache whose keys and values are in slots of tables on a device.

Python holds the numbers of the slots only: the states of a segment are one int64[n] array of them.
So the prompts of a batch are put into the cache when its pass starts, not when it ends: the next
batch, which is prepared meanwhile, can refer to slots that are written by then. If the pass fails,
its segments are revoked.

Several owners may hold a slot: the batch that computes it, and each segment that has it. Two
prompts of one batch that share fewer than MIN_TOKENS tokens, such as the opening of the template,
are two segments that both have the slots of these tokens. A slot becomes free when nothing holds it
any more and nothing refers to its segments: neither the cache nor a batch that was planned with
them and may still run.
"""

import weakref
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from kwise.engine.cache_usage import CacheUsage
from kwise.engine.model.prefix_cache import MIN_TOKENS, PromptCache, Segment, States
from kwise.engine.trie import Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Reservation:
    """Slots for the new entries of one batch, which holds them as long as this object exists."""

    slots: Int64


class SlotCache(PromptCache):
    """A prompt cache of the slots 1 to `num_slots` - 1; the least recently used are freed first.

    Slot 0 is for padding. A slot takes `slot_bytes` of the device's memory, in all layers together.
    """

    def __init__(self, num_slots: int, slot_bytes: int = 0) -> None:
        super().__init__(max_bytes=1 << 62)  # the slots are the limit
        self._slot_bytes = slot_bytes
        self.capacity = num_slots - 1
        self._free = np.arange(1, num_slots)  # a stack: the first `_num_free` are free
        self._num_free = num_slots - 1
        self._num_owners = np.zeros(num_slots, np.int64)
        # Slots of owners that are gone. Python may delete an owner in any thread, even in one that
        # has the lock, so the slots are counted later.
        self._released: deque[Int64] = deque()
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
            if slots is None:
                return None
            reservation = Reservation(slots=slots)
            self._own(reservation, slots)
            return reservation

    def put(self, key: bytes, start: int, states: States) -> Segment | None:
        with self._lock:
            segment = super().put(key, start, states)
            if segment is not None:
                (slots,) = states
                self._own(segment, slots)
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

    @property
    def usage(self) -> CacheUsage:
        with self._lock:
            self._free_released()
            num_used = self.capacity - self._num_free
        return CacheUsage(
            entries=len(self),
            num_bytes=num_used * self._slot_bytes,
            max_bytes=self.capacity * self._slot_bytes,
        )

    def _own(self, owner: Segment | Reservation, slots: Int64) -> None:
        """Hold distinct slots as long as `owner` exists."""
        self._num_owners[slots] += 1
        weakref.finalize(owner, self._released.append, slots).atexit = False

    def _take(self, size: int) -> Int64 | None:
        """Take free slots; None, and take none, if there are fewer."""
        self._free_released()
        if size > self._num_free:
            return None
        self._num_free -= size
        return self._free[self._num_free : self._num_free + size].copy()

    def _free_released(self) -> None:
        while self._released:
            slots = self._released.popleft()
            self._num_owners[slots] -= 1
            free = slots[self._num_owners[slots] == 0]
            self._free[self._num_free : self._num_free + len(free)] = free
            self._num_free += len(free)
