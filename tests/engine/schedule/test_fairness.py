"""Clients take turns, interactive work goes before bulk, and neither can be starved."""

import asyncio
from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kwise.engine.schedule.fairness import BULK_EVERY, Turns
from kwise.engine.schedule.slots import Slots, Ticket
from kwise.types import Priority


@dataclass(eq=False)
class Item:
    client: str
    cost: int = 1
    priority: Priority = Priority.INTERACTIVE


def take_all(turns: "Turns[Item]") -> list[Item]:
    taken = []
    while (item := next(turns.in_order(), None)) is not None:
        turns.take([item], [item.cost])
        taken.append(item)
    return taken


def test_a_client_with_ten_thousand_in_line_delays_another_by_one_turn() -> None:
    turns: Turns[Item] = Turns()
    for _ in range(10_000):
        turns.add(Item("greedy"))
    for _ in range(50):
        turns.take([next(turns.in_order())], [1])
    turns.add(Item("modest"))
    assert "modest" in [item.client for item in take_all(turns)[:2]]


def test_clients_are_served_by_cost_and_not_by_number() -> None:
    turns: Turns[Item] = Turns()
    for _ in range(100):
        turns.add(Item("long", cost=10))
        turns.add(Item("short", cost=1))
    first = take_all(turns)[:55]
    assert (
        sum(item.cost for item in first if item.client == "long")
        == sum(i.cost for i in first if i.client == "short")
        == 50
    )


@pytest.mark.parametrize("with_bulk", [False, True])
def test_time_away_is_no_credit(with_bulk: bool) -> None:
    """Whoever comes back would otherwise hold the model until the others' past was made up for: one turn in two of 200, and none
    where bulk work, which is served less, was waiting too."""
    turns: Turns[Item] = Turns()
    for _ in range(200 if with_bulk else 0):
        turns.add(Item("trainer", priority=Priority.BULK))
    for _ in range(400):
        turns.add(Item("steady"))
    for _ in range(100):
        turns.take([next(turns.in_order())], [1])
    counts = dict.fromkeys(("trainer", "steady", "returning"), 0)
    turns.add(Item("returning"))
    for _ in range(200):
        item = next(turns.in_order())
        turns.take([item], [1])
        counts[item.client] += 1
        if item.client == "returning":
            turns.add(Item("returning"))
    assert abs(counts["steady"] - counts["returning"]) <= 2
    assert counts["trainer"] == (200 // BULK_EVERY if with_bulk else 0)


def test_clients_that_come_and_go_leave_others_their_turns() -> None:
    """Every new connection is a new client."""
    turns: Turns[Item] = Turns()
    for _ in range(100):
        turns.add(Item("steady"))
    for number in range(100):
        if number % 2:
            turns.add(Item(f"new {number}"))
        turns.take([next(turns.in_order())], [1])
    assert 40 <= sum(item.client == "steady" for item in turns.in_order()) <= 60


def test_hastened_work_is_charged_to_who_waits_for_it() -> None:
    turns: Turns[Item] = Turns()
    backlog = [Item("greedy") for _ in range(100)]
    for item in backlog:
        turns.add(item)
    turns.hasten(backlog[90], Priority.INTERACTIVE, "modest")
    assert backlog[90] in take_all(turns)[:2]
    bulk = Item("trainer", priority=Priority.BULK)
    turns.add(bulk)
    turns.hasten(bulk, Priority.INTERACTIVE, "trainer")
    assert bulk.priority is Priority.INTERACTIVE
    turns.hasten(bulk, Priority.BULK, "other")
    assert (bulk.priority, bulk.client) == (Priority.INTERACTIVE, "trainer")


@given(st.lists(st.sampled_from(Priority), min_size=1, max_size=200))
def test_bulk_has_one_turn_in_so_many_and_interactive_work_the_others(
    priorities: list[Priority],
) -> None:
    turns: Turns[Item] = Turns()
    for number, priority in enumerate(priorities):
        turns.add(Item(str(number % 3), priority=priority))
    order = [item.priority for item in take_all(turns)]
    while Priority.BULK in order and Priority.INTERACTIVE in order:
        bulk = order.index(Priority.BULK)
        assert bulk == min(BULK_EVERY - 1, order.count(Priority.INTERACTIVE))
        order = order[bulk + 1 :]


class TurnsKeepTheirPromises(RuleBasedStateMachine):
    """Beside a plain list of what is in line."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: Turns[Item] = Turns()
        self.waiting: list[Item] = []

    @rule(client=st.sampled_from("abc"), cost=st.integers(1, 9), priority=st.sampled_from(Priority))
    def add(self, client: str, cost: int, priority: Priority) -> None:
        item = Item(client, cost, priority)
        self.turns.add(item)
        self.waiting.append(item)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        if self.waiting:
            item = data.draw(st.sampled_from(self.waiting))
            assert self.turns.discard(item) and not self.turns.discard(item)
            self.waiting.remove(item)

    @rule(data=st.data(), priority=st.sampled_from(Priority), client=st.sampled_from("abc"))
    def hasten(self, data: st.DataObject, priority: Priority, client: str) -> None:
        if self.waiting:
            item = data.draw(st.sampled_from(self.waiting))
            before = (item.priority, item.client)
            self.turns.hasten(item, priority, client)
            slower = before[0] is Priority.INTERACTIVE and priority is Priority.BULK
            assert (item.priority, item.client) == (before if slower else (priority, client))
            if (item.priority, item.client) != before:
                line = [
                    i for i in self.turns.in_order() if (i.priority, i.client) == (priority, client)
                ]
                assert line[0] is item
                self.waiting.remove(item)
                self.waiting.insert(0, item)

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        order = list(self.turns.in_order())
        if order:
            company = (
                data.draw(st.lists(st.sampled_from(order[1:]), unique=True))
                if len(order) > 1
                else []
            )
            self.turns.take([order[0], *company], [item.cost for item in (order[0], *company)])
            for item in (order[0], *company):
                self.waiting.remove(item)

    @invariant()
    def everything_has_its_turn_once(self) -> None:
        order = list(self.turns.in_order())
        assert len(self.turns) == len(order) == len(self.waiting)
        assert set(map(id, order)) == set(map(id, self.waiting))
        for client, priority in product(
            "abc", Priority
        ):  # first come, first served, but for what was hastened
            arrived = [i for i in self.waiting if (i.client, i.priority) == (client, priority)]
            assert [i for i in order if (i.client, i.priority) == (client, priority)] == arrived


TestTurnsKeepTheirPromises = TurnsKeepTheirPromises.TestCase


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40), st.integers(1, 3))
def test_slots_are_never_more_nor_lost_whoever_gives_up(
    steps: list[tuple[int, bool]], num_slots: int
) -> None:
    async def scenario() -> None:
        slots = Slots(num_slots)
        holding = 0

        async def hold(ticks: int) -> None:
            nonlocal holding
            async with slots.turn(Ticket(priority=Priority.INTERACTIVE, client=str(ticks % 2))):
                holding += 1
                try:
                    assert holding <= num_slots
                    for _ in range(ticks):
                        await asyncio.sleep(0)
                finally:
                    holding -= 1

        tasks = []
        for ticks, gives_up in steps:
            tasks.append(asyncio.create_task(hold(ticks)))
            await asyncio.sleep(0)
            if gives_up:
                tasks[len(tasks) // 2].cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        async with asyncio.timeout(5):  # all slots are free again
            await asyncio.gather(*(hold(1) for _ in range(num_slots * 2)))

    asyncio.run(scenario())


async def test_a_ticket_that_somebody_else_waits_for_too_takes_that_turn() -> None:
    """Before it is in line as well as there; a bulk ticket at the end of a long line once kept an interactive joiner waiting."""
    slots, called = Slots(1), []

    async def hold(name: str, ticket: Ticket) -> None:
        async with slots.turn(ticket):
            called.append(name)
            await asyncio.sleep(0)

    tickets = {name: Ticket(priority=Priority.BULK, client="greedy") for name in "abcdef"}
    tasks = [asyncio.create_task(hold(name, ticket)) for name, ticket in tickets.items()]
    slots.hasten(tickets["f"], Priority.INTERACTIVE, "modest")  # no task has begun
    await asyncio.sleep(0)
    slots.hasten(tickets["e"], Priority.INTERACTIVE, "modest")
    slots.hasten(
        tickets["e"], Priority.BULK, "greedy"
    )  # a group has one ticket, and others join other responses of it
    await asyncio.gather(*tasks)
    assert called == ["a", "e", "f", "b", "c", "d"]
