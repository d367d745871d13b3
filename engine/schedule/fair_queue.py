"""A queue that serves clients fairly. It depends on no clock, event loop or tokenizer.

A flow is one client at one priority. Within a priority, the least-served flow goes next. A new flow
starts at the current virtual time, so idle time earns no credit (fair queueing: Demers, Keshav and
Shenker 1989). A client with 10,000 waiting items therefore delays the single item of another client
by one item. Interactive flows go before bulk flows, except that every `BULK_EVERY`-th turn is for
bulk, so that neither can starve the other.

Several requests may wait for one item. The item then waits in the flow of each, and leaves all of
them when the first one reaches it, so that joining an item never makes it later.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Generic, NamedTuple, Protocol, TypeVar

from kwise.types import Priority

BULK_EVERY = 8


class Flow(NamedTuple):
    """One client at one priority: the unit between which the queue is fair."""

    priority: Priority
    client: str


class Waiting(Hashable, Protocol):
    """An item that waits. Items are compared by identity."""

    @property
    def cost(self) -> int:
        """The expected cost, in any unit that all items share."""


T = TypeVar("T", bound=Waiting)


class _Backlog(Generic[T]):
    """The items of one flow, in order of arrival, and the cost that the flow has been charged."""

    def __init__(self, served: float) -> None:
        self.items: OrderedDict[T, None] = OrderedDict()
        self.served = served


class FairQueue(Generic[T]):
    """Items in the order in which they should be served."""

    def __init__(self) -> None:
        self._backlogs: dict[Priority, dict[str, _Backlog[T]]] = {
            priority: {} for priority in Priority
        }
        self._virtual_time = dict.fromkeys(Priority, 0.0)
        self._flows_of: dict[T, Counter[Flow]] = {}
        self._turns_since_bulk = 0

    def __len__(self) -> int:
        return len(self._flows_of)

    def __contains__(self, item: T) -> bool:
        return item in self._flows_of

    def add(self, item: T, flow: Flow) -> None:
        """Append `item` to the flow, once for each request that waits for it.

        An item may be in several flows. Adding it to another one never makes it later.
        """
        flows = self._flows_of.setdefault(item, Counter())
        flows[flow] += 1
        if flows[flow] == 1:
            backlogs = self._backlogs[flow.priority]
            if flow.client not in backlogs:
                backlogs[flow.client] = _Backlog(self._virtual_time[flow.priority])
            backlogs[flow.client].items[item] = None

    def remove(self, item: T, flow: Flow) -> bool:
        """Undo one `add`. Return True if nobody waits for the item any more and it is removed.

        An item that is not in the queue is ignored.
        """
        flows = self._flows_of.get(item)
        if flows is None:
            return False
        flows[flow] -= 1
        if flows[flow] > 0:
            return False
        self._leave(item, flow)
        if not flows:
            del self._flows_of[item]
        return not flows

    def discard(self, item: T) -> None:
        """Remove the item from all of its flows."""
        for flow in list(self._flows_of.pop(item, ())):
            self._leave(item, flow)

    def in_order(self) -> Iterator[tuple[T, Flow]]:
        """Yield each item with the flow that reaches it first, the next item first.

        The order assumes that each item is served alone. The queue must not change meanwhile.
        """
        bulk_first = self._turns_since_bulk >= BULK_EVERY - 1
        first, second = Priority.INTERACTIVE, Priority.BULK
        seen: set[T] = set()
        for priority in (second, first) if bulk_first else (first, second):
            yield from self._in_order(priority, seen)

    def take(self, batch: Sequence[tuple[T, Flow]], costs: Sequence[int]) -> None:
        """Remove items that are served together in one turn, and charge each flow its cost.

        Args:
            batch: pairs from `in_order`; the first one decides whether this is a turn for bulk.
            costs: the real cost of serving each item, in the unit of `Waiting.cost`.
        """
        if batch[0][1].priority is Priority.BULK:
            self._turns_since_bulk = 0
        elif self._backlogs[Priority.BULK]:
            self._turns_since_bulk += 1
        for (_, flow), cost in zip(batch, costs, strict=True):
            backlogs = self._backlogs[flow.priority]
            backlogs[flow.client].served += cost
            self._virtual_time[flow.priority] += cost / len(backlogs)
        for item, _ in batch:
            self.discard(item)

    def clear(self) -> list[T]:
        """Remove and return all items."""
        items = list(self._flows_of)
        for item in items:
            self.discard(item)
        return items

    def _leave(self, item: T, flow: Flow) -> None:
        if item in self._flows_of:
            del self._flows_of[item][flow]
        backlogs = self._backlogs[flow.priority]
        del backlogs[flow.client].items[item]
        if not backlogs[flow.client].items:
            del backlogs[flow.client]

    def _in_order(self, priority: Priority, seen: set[T]) -> Iterator[tuple[T, Flow]]:
        """Merge the backlogs by served cost; skip items in `seen`, and add those it yields."""
        backlogs = self._backlogs[priority]
        heap = [
            (backlog.served, number, iter(backlog.items), Flow(priority, client))
            for number, (client, backlog) in enumerate(backlogs.items())
        ]
        heapify(heap)
        while heap:
            served, number, items, flow = heap[0]
            item = next((item for item in items if item not in seen), None)
            if item is None:
                heappop(heap)
                continue
            if len(self._flows_of[item]) > 1:
                seen.add(item)
            yield item, flow
            heapreplace(heap, (served + item.cost, number, items, flow))
