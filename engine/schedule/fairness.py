"""Who is next: a line for each client and priority, and the order in which they take turns. No clock, tasks or tokens.

Within a priority the next turn is the client's who has been served least, those who come being counted as served as much as
everybody would have been, had all been served alike (the virtual time of fair queueing: Demers, Keshav and Shenker 1989). One
that has 10,000 groups in line delays another's one by a turn. Interactive work goes before bulk work, but
for every `BULK_EVERY`-th turn, so that neither an endless stream of interactive work nor a backlog of bulk stops the other.
"""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace
from typing import Generic, Protocol, TypeVar

from kwise.types import Priority

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
        self._lines: dict[Priority, dict[str, OrderedDict[_T, None]]] = {
            priority: {} for priority in Priority
        }
        self._served: dict[Priority, dict[str, float]] = {priority: {} for priority in Priority}
        self._served_alike = dict.fromkeys(Priority, 0.0)
        self._turns_since_bulk = 0

    def __len__(self) -> int:
        return sum(len(line) for lines in self._lines.values() for line in lines.values())

    def add(self, item: _T) -> None:
        """To the end of its line."""
        lines = self._lines[item.priority]
        if item.client not in lines:
            self._served[item.priority][item.client] = self._served_alike[
                item.priority
            ]  # time away is no credit
            lines[item.client] = OrderedDict()
        lines[item.client][item] = None

    def discard(self, item: _T) -> bool:
        """Out of its line, where it may be no more. Says whether it was."""
        lines = self._lines[item.priority]
        line = lines.get(item.client)
        if line is None or item not in line:
            return False
        del line[item]
        if not line:
            del lines[item.client], self._served[item.priority][item.client]
        return True

    def hasten(self, item: _T, priority: Priority, client: str) -> None:
        """What `client` waits for too goes to the front of its line, unless it is bulk that would slow it. What stands in no line
        yet is its own from now on."""
        if (item.priority, priority) == (Priority.INTERACTIVE, Priority.BULK) or (
            item.priority,
            item.client,
        ) == (
            priority,
            client,
        ):
            return
        was_in_line = self.discard(item)
        item.priority, item.client = priority, client
        if was_in_line:
            self.add(item)
            self._lines[priority][client].move_to_end(item, last=False)

    def in_order(self) -> Iterator[_T]:
        """All items, the next one first, as if each took its turn. Lines must not change meanwhile."""
        interactive, bulk = (
            self._in_order(priority) for priority in (Priority.INTERACTIVE, Priority.BULK)
        )
        first, second = (
            (bulk, interactive) if self._turns_since_bulk >= BULK_EVERY - 1 else (interactive, bulk)
        )
        yield from first
        yield from second

    def take(self, turn: list[_T], costs: list[int]) -> None:
        """These take a turn together, of the first's priority, and their clients are charged `costs`."""
        if turn[0].priority is Priority.BULK:
            self._turns_since_bulk = 0
        elif self._lines[Priority.BULK]:
            self._turns_since_bulk += 1
        for item, cost in zip(turn, costs, strict=True):
            self._served[item.priority][item.client] += cost
            self._served_alike[item.priority] += cost / len(self._lines[item.priority])
        for item in turn:
            self.discard(item)

    def _in_order(self, priority: Priority) -> Iterator[_T]:
        lines = self._lines[priority]
        served_of = self._served[priority]
        heap = [
            (served_of[client], number, iter(line))
            for number, (client, line) in enumerate(lines.items())
        ]
        heapify(heap)
        while heap:
            served, number, line = heap[0]
            if (item := next(line, None)) is None:
                heappop(heap)
            else:
                yield item
                heapreplace(heap, (served + item.cost, number, line))
