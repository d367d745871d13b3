"""Clients are served fairly, and interactive work goes before bulk but does not starve it."""

from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kwise.engine.schedule.fair_queue import BULK_EVERY, FairQueue, Flow
from kwise.types import Priority

FLOWS = [Flow(priority, client) for priority, client in product(Priority, "abc")]


@dataclass(eq=False)
class Item:
    cost: int = 1


def interactive(client: str) -> Flow:
    return Flow(Priority.INTERACTIVE, client)


def bulk(client: str) -> Flow:
    return Flow(Priority.BULK, client)


def take(queue: FairQueue[Item]) -> tuple[Item, Flow]:
    item, flow = next(queue.in_order())
    queue.take([(item, flow)], [item.cost])
    return item, flow


def take_all(queue: FairQueue[Item]) -> list[tuple[Item, Flow]]:
    return [take(queue) for _ in range(len(queue))]


def test_a_client_with_ten_thousand_items_delays_another_by_one() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(10_000):
        queue.add(Item(), interactive("greedy"))
    for _ in range(50):
        take(queue)
    queue.add(Item(), interactive("modest"))
    assert interactive("modest") in [take(queue)[1] for _ in range(2)]


def test_clients_are_served_by_cost_and_not_by_number_of_items() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(100):
        queue.add(Item(cost=10), interactive("long"))
        queue.add(Item(cost=1), interactive("short"))
    first = take_all(queue)[:55]
    served = {
        client: sum(item.cost for item, flow in first if flow.client == client)
        for client in ("long", "short")
    }
    assert served == {"long": 50, "short": 50}


@pytest.mark.parametrize("with_bulk", [False, True])
def test_idle_time_earns_no_credit(with_bulk: bool) -> None:
    """A client that comes back shares the model; it does not hold it to make up for its absence."""
    queue: FairQueue[Item] = FairQueue()
    for _ in range(200 if with_bulk else 0):
        queue.add(Item(), bulk("trainer"))
    for _ in range(400):
        queue.add(Item(), interactive("steady"))
    for _ in range(100):
        take(queue)
    counts = dict.fromkeys(("trainer", "steady", "returning"), 0)
    queue.add(Item(), interactive("returning"))
    for _ in range(200):
        _, flow = take(queue)
        counts[flow.client] += 1
        if flow.client == "returning":
            queue.add(Item(), interactive("returning"))
    assert abs(counts["steady"] - counts["returning"]) <= 2
    assert counts["trainer"] == (200 // BULK_EVERY if with_bulk else 0)


def test_clients_that_come_and_go_leave_others_their_share() -> None:
    """Every new connection is a new client."""
    queue: FairQueue[Item] = FairQueue()
    for _ in range(100):
        queue.add(Item(), interactive("steady"))
    for number in range(100):
        if number % 2:
            queue.add(Item(), interactive(f"new {number}"))
        take(queue)
    assert 40 <= sum(flow.client == "steady" for _, flow in queue.in_order()) <= 60


@given(st.lists(st.sampled_from(Priority), min_size=1, max_size=200))
def test_bulk_has_every_eighth_turn(priorities: list[Priority]) -> None:
    queue: FairQueue[Item] = FairQueue()
    for number, priority in enumerate(priorities):
        queue.add(Item(), Flow(priority, str(number % 3)))
    order = [flow.priority for _, flow in take_all(queue)]
    while Priority.BULK in order and Priority.INTERACTIVE in order:
        first_bulk = order.index(Priority.BULK)
        assert first_bulk == min(BULK_EVERY - 1, order.count(Priority.INTERACTIVE))
        order = order[first_bulk + 1 :]


def test_an_item_is_served_in_the_first_of_its_flows_and_charged_there() -> None:
    queue: FairQueue[Item] = FairQueue()
    backlog = [Item() for _ in range(100)]
    for item in backlog:
        queue.add(item, bulk("greedy"))
    queue.add(backlog[90], interactive("modest"))
    assert take(queue) == (backlog[90], interactive("modest"))
    assert [item for item, _ in take_all(queue)] == [*backlog[:90], *backlog[91:]]


def test_an_item_that_is_next_stays_next_if_a_client_that_was_served_much_joins_it() -> None:
    """Joining once moved the item to the joiner's flow, from place 0 to place 8 of 48."""
    queue: FairQueue[Item] = FairQueue()
    for _ in range(20):
        queue.add(Item(), interactive("served much"))
        queue.add(Item(), interactive("other"))
    for _ in range(10):
        queue.take(
            [next(entry for entry in queue.in_order() if entry[1].client == "served much")], [9]
        )
    first = next(queue.in_order())[0]
    queue.add(first, interactive("served much"))
    assert next(queue.in_order())[0] is first


def test_an_item_goes_back_to_its_place_if_the_request_that_promoted_it_leaves() -> None:
    queue: FairQueue[Item] = FairQueue()
    items = [Item() for _ in range(5)]
    for item in items:
        queue.add(item, bulk("trainer"))
    queue.add(items[3], interactive("user"))
    assert next(queue.in_order())[0] is items[3]
    assert not queue.remove(items[3], interactive("user"))
    assert [item for item, _ in queue.in_order()] == items
    assert queue.remove(items[3], bulk("trainer"))
    assert [item for item, _ in queue.in_order()] == [*items[:3], items[4]]


class FairQueueBesideAList(RuleBasedStateMachine):
    """Compares a queue with a plain list of (item, its flows in order of arrival)."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Item] = FairQueue()
        self.arrivals: list[tuple[Item, Flow]] = []

    def waiting(self) -> list[Item]:
        return list(dict.fromkeys(item for item, _ in self.arrivals))

    def order(self) -> list[Item]:
        return [item for item, _ in self.queue.in_order()]

    def forget(self, gone: list[Item]) -> None:
        self.arrivals = [arrival for arrival in self.arrivals if arrival[0] not in gone]

    @rule(flow=st.sampled_from(FLOWS), cost=st.integers(1, 9))
    def add_new(self, flow: Flow, cost: int) -> None:
        item = Item(cost)
        self.queue.add(item, flow)
        self.arrivals.append((item, flow))

    @rule(data=st.data(), flow=st.sampled_from(FLOWS))
    def join(self, data: st.DataObject, flow: Flow) -> None:
        if not self.arrivals:
            return
        item = data.draw(st.sampled_from(self.waiting()))
        before = self.order()
        self.queue.add(item, flow)
        self.arrivals.append((item, flow))
        after = self.order()
        assert after.index(item) <= before.index(item), "joining made the item later"
        place = after.index(item)
        assert after[:place] == before[:place], "joining changed what is served before it"

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if not self.arrivals:
            return
        item, flow = data.draw(st.sampled_from(self.arrivals))
        at = max(i for i, arrival in enumerate(self.arrivals) if arrival == (item, flow))
        del self.arrivals[at]
        assert self.queue.remove(item, flow) == (item not in self.waiting())

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        if self.arrivals:
            item = data.draw(st.sampled_from(self.waiting()))
            self.queue.discard(item)
            self.queue.discard(item)
            assert not self.queue.remove(item, FLOWS[0])
            self.forget([item])

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        order = list(self.queue.in_order())
        if order:
            others = st.lists(st.sampled_from(order[1:]), unique=True) if order[1:] else st.just([])
            turn = [order[0], *data.draw(others)]
            self.queue.take(turn, [item.cost for item, _ in turn])
            self.forget([item for item, _ in turn])

    @invariant()
    def every_item_is_served_once(self) -> None:
        order = list(self.queue.in_order())
        assert len(self.queue) == len(order) == len(self.waiting())
        assert {item for item, _ in order} == set(self.waiting())
        for item, flow in order:
            assert item in self.queue
            assert (item, flow) in self.arrivals

    @invariant()
    def within_a_flow_the_first_to_come_is_served_first(self) -> None:
        order = self.order()
        for flow in FLOWS:
            own = list(dict.fromkeys(item for item, f in self.arrivals if f == flow))
            only = [i for i in own if {f for item, f in self.arrivals if item is i} == {flow}]
            assert [item for item in order if item in only] == only


TestFairQueueBesideAList = FairQueueBesideAList.TestCase
