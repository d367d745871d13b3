"""A fixed number of slots and fair turns at them: a semaphore whose queue is `Turns`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kwise.engine.turns import Turns
from kwise.engine.types import Priority


@dataclass(slots=True, eq=False)
class _Ticket:
    priority: Priority
    client: str
    cost: int
    called: "asyncio.Future[None]"


class Slots:
    """Used from one event loop."""

    def __init__(self, num_slots: int) -> None:
        self._num_free = num_slots
        self._turns: Turns[_Ticket] = Turns()

    @asynccontextmanager
    async def turn(self, priority: Priority, client: str, cost: int) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        if self._num_free:
            self._num_free -= 1
        else:
            await self._called(_Ticket(priority, client, cost, asyncio.get_running_loop().create_future()))
        try:
            yield
        finally:
            self._pass_on()

    async def _called(self, ticket: _Ticket) -> None:
        self._turns.add(ticket)
        try:
            await ticket.called
        except asyncio.CancelledError:
            self._turns.discard(ticket)
            if not ticket.called.cancelled():
                self._pass_on()  # it was called and gave up in the same moment
            raise

    def _pass_on(self) -> None:
        waiting = (ticket for ticket in self._turns.in_order() if not ticket.called.done())
        if (ticket := next(waiting, None)) is None:
            self._num_free += 1
        else:
            self._turns.take([ticket], [ticket.cost])
            ticket.called.set_result(None)
