"""Summaries: at most one line in ten seconds about each thing that callers can cause often.

The first event is logged at once. Further ones are counted, and logged together ten seconds later.
"""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

PERIOD_S = 10.0
# Callers without a token can take any number of names.
MAX_KEYS = 1000

K = TypeVar("K", bound=Hashable)
E = TypeVar("E")


@dataclass(slots=True, kw_only=True)
class Summary(Generic[E]):
    """The events of one key that are not logged yet.

    Attributes:
        count: how many there are.
        chosen: the one that the line shows.
    """

    count: int = 0
    chosen: E | None = field(default=None)


class Summaries(Generic[K, E]):
    """Counts events by key, and writes summaries of them. Used from one event loop.

    Args:
        write: writes the line for a key: the number of events, the one to show, and the seconds in
            which they happened; 0 for the first event, which is alone.
        prefers: returns True if an event is to be shown in place of another one.
        overflow: the key of all events once there are `MAX_KEYS` others.
    """

    def __init__(
        self,
        write: Callable[[K, int, E, float], None],
        prefers: Callable[[E, E], bool],
        overflow: K,
    ) -> None:
        self._write = write
        self._prefers = prefers
        self._overflow = overflow
        self._pending: dict[K, Summary[E]] = {}

    def add(self, key: K, event: E) -> None:
        """Count an event, and log it at once if it is the first of its key for ten seconds."""
        if key not in self._pending and len(self._pending) >= MAX_KEYS:
            key = self._overflow
        if (summary := self._pending.get(key)) is None:
            self._pending[key] = Summary()
            asyncio.get_running_loop().call_later(PERIOD_S, self._flush, key)
            self._write(key, 1, event, 0.0)
            return
        summary.count += 1
        if summary.chosen is None or self._prefers(event, summary.chosen):
            summary.chosen = event

    def flush(self) -> None:
        """Write what has been counted so far, at the end of the server."""
        for key in list(self._pending):
            self._write_pending(key)
        self._pending.clear()

    def _flush(self, key: K) -> None:
        if key in self._pending:
            if self._write_pending(key):
                self._pending[key] = Summary()
                asyncio.get_running_loop().call_later(PERIOD_S, self._flush, key)
            else:
                del self._pending[key]

    def _write_pending(self, key: K) -> bool:
        summary = self._pending[key]
        if summary.chosen is None:
            return False
        self._write(key, summary.count, summary.chosen, PERIOD_S)
        return True
