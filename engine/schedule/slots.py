"""A fixed number of slots and fair turns at them: a semaphore whose queue is `Turns`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kwise.engine.schedule.fairness import Turns
from kwise.types import Priority


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A place in line, or one to come."""

    priority: Priority
    client: str
    cost: int = 1
    called: "asyncio.Future[None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Slots:
    """Used from one event loop."""

    def __init__(self, num_slots: int) -> None:
        self._num_free = num_slots
        self._turns: Turns[Ticket] = Turns()

    @asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        if self._num_free:
            self._num_free -= 1
        else:
            await self._called(ticket)
        try:
            yield
        finally:
            self._pass_on()

    def hasten(self, ticket: Ticket, priority: Priority, client: str) -> None:
        """`client` waits for it too, with `priority`, be it in line or not yet. See `Turns.hasten`."""
        self._turns.hasten(ticket, priority, client)

    async def _called(self, ticket: Ticket) -> None:
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
