"""A thread with an event loop that scores windows while the main thread reads and writes.

The main thread may block on a pipe, and Ctrl-C interrupts it. The scorer goes on meanwhile.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from types import TracebackType

from kwise.bulk.scorers.protocol import BulkScorer, GroupResult
from kwise.types import Group

OpenScorer = Callable[[], Awaitable[BulkScorer]]
"""Opens a scorer, in the event loop that will call it."""


class ScorerThread:
    """Runs a scorer in an event loop in a thread. A context manager.

    Raises:
        Exception: what opening the scorer raises.
    """

    def __init__(self, open_scorer: OpenScorer) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kwise bulk scorer", daemon=True
        )
        self._thread.start()
        try:
            opened = asyncio.run_coroutine_threadsafe(_opened(open_scorer), self._loop)
            self.scorer = opened.result()
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> "ScorerThread":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, groups: Sequence[Group]) -> "Future[Sequence[GroupResult]]":
        """Start to score a window, and return the future of its results."""
        return asyncio.run_coroutine_threadsafe(_scored(self.scorer, groups), self._loop)

    def close(self) -> None:
        """Cancel what is in flight, and close the scorer."""
        try:
            asyncio.run_coroutine_threadsafe(_closed(self.scorer), self._loop).result()
        finally:
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _opened(open_scorer: OpenScorer) -> BulkScorer:
    return await open_scorer()


async def _scored(scorer: BulkScorer, groups: Sequence[Group]) -> Sequence[GroupResult]:
    results = await scorer.score(groups)
    if len(results) != len(groups):
        raise RuntimeError(f"the scorer returned {len(results)} results for {len(groups)} groups")
    return results


async def _closed(scorer: BulkScorer) -> None:
    """Cancel all other tasks of the loop, and close the scorer."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await scorer.close()
