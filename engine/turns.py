"""Who is next: a line for each client and priority, and the order in which they take turns. No clock, tasks or tokens.

Within a priority the next turn is the client's who has been served least since it came (start-time fair queueing, Goyal, Vin
and Cheng 1996): one that has 10,000 groups in line delays another's one by a turn. Interactive work goes before bulk work, but
for every `BULK_EVERY`-th turn, so that neither an endless stream of interactive work nor a backlog of bulk stops the other.
"""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace
from typing import Generic, Protocol, TypeVar

from kwise.engine.types import Priority

BULK_EVERY = 8


class Waiting(Protocol):
    """What stands in a line; `cost` in any unit, the same for all."""

    priority: Priority
    client: str

    @property
    def cost(self) -> int: ...


_T = TypeVar("_T", bound=Waiting)


class Turns(Generic[_T]):
    """Items in line, each by identity."""

    def __init__(self) -> None:
        self._lines: dict[Priority, dict[str, OrderedDict[_T, None]]] = {priority: {} for priority in Priority}
        self._served: dict[str, int] = {}
        self._turns_since_bulk = 0

    def __len__(self) -> int:
        return sum(len(line) for lines in self._lines.values() for line in lines.values())

    def add(self, item: _T) -> None:
        """To the end of its line."""
        if item.client not in self._served:
            self._served[item.client] = min(self._served.values(), default=0)  # time away is no credit
        self._lines[item.priority].setdefault(item.client, OrderedDict())[item] = None

    def discard(self, item: _T) -> bool:
        """Out of its line, where it may be no more. Says whether it was."""
        lines = self._lines[item.priority]
        line = lines.get(item.client)
        if line is None or item not in line:
            return False
        del line[item]
        if not line:
            del lines[item.client]
            if not any(item.client in others for others in self._lines.values()):
                del self._served[item.client]
        return True

    def promote(self, item: _T) -> None:
        """Bulk that interactive work waits for goes to the front of its client's interactive line."""
        if item.priority is Priority.BULK and self.discard(item):
            item.priority = Priority.INTERACTIVE
            self.add(item)
            self._lines[item.priority][item.client].move_to_end(item, last=False)

    def in_order(self) -> Iterator[_T]:
        """All items, the next one first, as if each took its turn. Lines must not change meanwhile."""
        interactive, bulk = (self._in_order(priority) for priority in (Priority.INTERACTIVE, Priority.BULK))
        first, second = (bulk, interactive) if self._turns_since_bulk >= BULK_EVERY - 1 else (interactive, bulk)
        yield from first
        yield from second

    def take(self, turn: list[_T]) -> None:
        """These take a turn together, of the first's priority."""
        if turn[0].priority is Priority.BULK:
            self._turns_since_bulk = 0
        elif self._lines[Priority.BULK]:
            self._turns_since_bulk += 1
        for item in turn:
            self._served[item.client] += item.cost
        for item in turn:
            self.discard(item)

    def _in_order(self, priority: Priority) -> Iterator[_T]:
        lines = self._lines[priority]
        heap = [(self._served[client], number, iter(line)) for number, (client, line) in enumerate(lines.items())]
        heapify(heap)
        while heap:
            served, number, line = heap[0]
            if (item := next(line, None)) is None:
                heappop(heap)
            else:
                yield item
                heapreplace(heap, (served + item.cost, number, line))
