"""Models that share a device take turns that are fair in the device's time."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwise.engine.schedule.device_turns import Devices, DeviceTurns, Share


class Clock:
    """A loop time that a test moves, in place of the loop's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now_s)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def take_turns(
    turns: DeviceTurns, clock: Clock, name: str, seconds: float, order: list[str], count: int
) -> None:
    share = Share()
    for _ in range(count):
        async with turns.turn(share):
            order.append(name)
            await asyncio.sleep(0)  # a pass, during which others arrive
            clock.now_s += seconds


async def test_a_slow_model_gets_as_much_time_as_a_quick_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns, clock, order = DeviceTurns(), Clock(monkeypatch), []  # type: ignore[var-annotated]
    slow = asyncio.create_task(take_turns(turns, clock, "slow", 3.0, order, 10))
    quick = asyncio.create_task(take_turns(turns, clock, "quick", 1.0, order, 30))
    await asyncio.gather(slow, quick)
    for end in range(8, 33, 4):
        count = Counter(order[:end])
        assert abs(3 * count["slow"] - count["quick"]) <= 4, order


async def test_a_model_that_was_idle_earns_no_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, clock, order = DeviceTurns(), Clock(monkeypatch), []  # type: ignore[var-annotated]
    busy = asyncio.create_task(take_turns(turns, clock, "busy", 1.0, order, 40))
    await settle()
    late = asyncio.create_task(take_turns(turns, clock, "late", 1.0, order, 10))
    await asyncio.gather(busy, late)
    begin = order.index("late")
    assert Counter(order[begin : begin + 20])["late"] == 10  # in turns, and not all at once


@given(cancelled=st.sets(st.integers(0, 7)))
@settings(max_examples=50, deadline=None)
def test_one_pass_at_a_time_whoever_leaves(cancelled: set[int]) -> None:
    async def run() -> None:
        turns, running, ended = DeviceTurns(), 0, []

        async def one(number: int) -> None:
            nonlocal running
            async with turns.turn(Share()):
                running += 1
                assert running == 1
                try:
                    await asyncio.sleep(0)
                finally:
                    running -= 1
                ended.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(8)]
        await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
            if number % 2:
                await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert {n for n, task in enumerate(tasks) if not task.cancelled()} == set(ended)
        async with turns.turn(Share()) as has_waited:
            assert not has_waited  # nobody has kept the turn

    asyncio.run(run())


def test_devices_are_shared_by_name() -> None:
    devices = Devices()
    first, second = devices.turns("cuda:0,cuda:1")
    assert devices.turns("cuda:1") == [second]
    assert devices.turns("cuda") == [first]
    assert devices.turns("cpu") not in ([first], [second])
