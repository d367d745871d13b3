"""Run blocking work in a thread that does not delay the end of the process.

`asyncio.to_thread` would: the event loop and the interpreter wait for its thread at exit, and
loading a large model takes minutes.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


async def in_daemon_thread(work: Callable[[], _T], *, name: str) -> _T:
    """Return `work()`, run in a daemon thread called `name`. Raises what it raises."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()  # so that a cancelled caller leaves it to the thread

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(future)
