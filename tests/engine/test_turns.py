"""Clients take turns, interactive work goes before bulk, and neither can be starved."""

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kwise.engine.slots import Slots
from kwise.engine.turns import BULK_EVERY, Turns
from kwise.engine.types import Priority


@dataclass(eq=False)
class Item:
    client: str
    cost: int = 1
    priority: Priority = Priority.INTERACTIVE


def take_all(turns: "Turns[Item]") -> list[Item]:
    taken = []
    while (item := next(turns.in_order(), None)) is not None:
        turns.take([item])
        taken.append(item)
    return taken


def test_a_client_with_ten_thousand_in_line_delays_another_by_one_turn() -> None:
    turns: Turns[Item] = Turns()
    for _ in range(10_000):
        turns.add(Item("greedy"))
    for _ in range(50):
        turns.take([next(turns.in_order())])
    turns.add(Item("modest"))
    assert "modest" in [item.client for item in take_all(turns)[:2]]


def test_clients_are_served_by_cost_and_not_by_number() -> None:
    turns: Turns[Item] = Turns()
    for _ in range(100):
        turns.add(Item("long", cost=10))
        turns.add(Item("short", cost=1))
    first = take_all(turns)[:55]
    assert sum(item.cost for item in first if item.client == "long") == sum(i.cost for i in first if i.client == "short") == 50


def test_time_away_is_no_credit() -> None:
    """Whoever comes back would otherwise hold the model until the others' past was made up for."""
    turns: Turns[Item] = Turns()
    for _ in range(200):
        turns.add(Item("steady"))
    for _ in range(100):
        turns.take([next(turns.in_order())])
    for _ in range(20):
        turns.add(Item("returning"))
    first = [item.client for item in take_all(turns)[:40]]
    assert first.count("steady") == first.count("returning") == 20


@given(st.lists(st.sampled_from(Priority), min_size=1, max_size=200))
def test_bulk_has_one_turn_in_so_many_and_interactive_work_the_others(priorities: list[Priority]) -> None:
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

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        if self.waiting:
            item = data.draw(st.sampled_from(self.waiting))
            was_bulk = item.priority is Priority.BULK
            self.turns.promote(item)
            assert item.priority is Priority.INTERACTIVE
            if was_bulk:
                same = [i for i in self.turns.in_order() if i.client == item.client and i.priority is item.priority]
                assert same[0] is item

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        order = list(self.turns.in_order())
        if order:
            company = data.draw(st.lists(st.sampled_from(order[1:]), unique=True)) if len(order) > 1 else []
            self.turns.take([order[0], *company])
            for item in (order[0], *company):
                self.waiting.remove(item)

    @invariant()
    def everything_has_its_turn_once(self) -> None:
        order = list(self.turns.in_order())
        assert len(self.turns) == len(order) == len(self.waiting)
        assert set(map(id, order)) == set(map(id, self.waiting))
        for client in "abc":  # first come, first served, but for what was promoted
            arrived = [i for i in self.waiting if i.client == client and i.priority is Priority.BULK]
            assert [i for i in order if i.client == client and i.priority is Priority.BULK] == arrived


TestTurnsKeepTheirPromises = TurnsKeepTheirPromises.TestCase


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40), st.integers(1, 3))
def test_slots_are_never_more_nor_lost_whoever_gives_up(steps: list[tuple[int, bool]], num_slots: int) -> None:
    async def scenario() -> None:
        slots = Slots(num_slots)
        holding = 0

        async def hold(ticks: int) -> None:
            nonlocal holding
            async with slots.turn(Priority.INTERACTIVE, str(ticks % 2), 1):
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
