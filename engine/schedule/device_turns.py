"""Share a device among the models of one process: one pass at a time, in fair turns.

The threads of two passes on one CPU would slow each other down, and the activations of two passes
on one GPU would need the memory of both. So each pass waits for its turn. Among the models that
wait, the one that has used the least time of the device goes next (start-time fair queueing: Goyal,
Vin and Cheng 1996). A model that was idle starts level with the others, so idle time earns no
credit. A pass is not interrupted: a model waits for at most one pass of each other model.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kwise.engine.model.devices import parse_devices


@dataclass(slots=True, eq=False)
class Share:
    """The part of a device's time that one model has used.

    Attributes:
        finish: the virtual time, in seconds, at which its last pass ended.
    """

    finish: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiting:
    start: float  # the virtual time at which the model may begin
    turn: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class DeviceTurns:
    """The turns of one device. Used from one event loop."""

    def __init__(self) -> None:
        self._is_taken = False
        self._virtual_time = 0.0
        self._waiting: list[_Waiting] = []  # in order of arrival

    @asynccontextmanager
    async def turn(self, share: Share) -> AsyncIterator[bool]:
        """Wait for a turn of the model whose share is given, and hold it inside.

        Yields:
            True if the device was busy, so that the turn had to be awaited.
        """
        start = max(share.finish, self._virtual_time)
        has_waited = self._is_taken
        if has_waited:
            await self._wait(_Waiting(start))
        self._is_taken = True
        self._virtual_time = max(self._virtual_time, start)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            yield has_waited
        finally:
            share.finish = start + loop.time() - began_s
            self._release()

    async def _wait(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if not waiting.turn.cancelled():  # it was given the turn, and cannot take it
                self._release()
            raise

    def _release(self) -> None:
        """End a turn. Its model may ask for the next one before it is given away.

        Otherwise two models would take turns one by one, however long the passes of each are.
        """
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._pass_on)
        else:
            self._is_taken = False

    def _pass_on(self) -> None:
        """Give the turn to the model that may begin first. Free the device if no model waits."""
        self._waiting = [waiting for waiting in self._waiting if not waiting.turn.cancelled()]
        self._is_taken = bool(self._waiting)
        if self._waiting:
            first = min(self._waiting, key=lambda waiting: waiting.start)
            self._waiting.remove(first)
            first.turn.set_result(None)


class Devices:
    """The turns of each device of a process, by its name."""

    def __init__(self) -> None:
        self._turns: dict[str, DeviceTurns] = {}

    def turns(self, devices: str) -> list[DeviceTurns]:
        """Return the turns of each device of a list such as "cuda:0,cuda:1".

        Raises:
            ConfigError: it is not a list of devices.
        """
        names = [device.name for device in parse_devices(devices)]
        return [self._turns.setdefault(name, DeviceTurns()) for name in names]
