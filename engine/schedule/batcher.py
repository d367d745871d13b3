"""Moves work from the queue through the sessions: the asynchronous shell around `WorkQueue`'s decisions.

One task per session takes a batch whenever its session is free and the queue holds work; it never waits on purpose. The
session runs in a thread of its own, where the runtime releases the GIL. A batch that fails, for want of memory or for one
sequence's fault, is run again in halves, and these in halves, so that only what cannot be run by itself gets the error.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from kwise.engine.model.session import Session
from kwise.engine.schedule.queue import Finished, Work, WorkQueue
from kwise.engine.sequence import EncodedSequence
from kwise.errors import KwiseError, ModelFailed, Overloaded, Unavailable
from kwise.types import Priority

_LOG = logging.getLogger(__name__)
SESSION_THREADS = "kwise-session"  # what the names of threads that run the model begin with


@dataclass(slots=True, kw_only=True)
class Counters:
    """What the engine has done since it started; monotonic. See `Counters` in reward.proto."""

    model_passes: int = 0
    sequences: int = 0
    rows: int = 0
    unshared_rows: int = 0
    reused_rows: int = 0
    cache_hits: int = 0
    joined: int = 0
    rejected_groups: int = 0
    abandoned: int = 0
    busy_s: float = 0.0
    idle_with_work_s: float = 0.0


class Batcher:
    """Runs submitted sequences through `sessions`. Used from one event loop, between `start` and `stop`.

    max_queue_tokens: tokens that may wait, in the queue or in a reservation. A client's first group needs only to fit; beyond it a
    client may have as many waiting as are then left free (Choudhury and Hahne's dynamic threshold, 1998), so that many groups of
    one fill half of the limit. More is refused, unless nothing waits at all, so that a group larger than the limit has its turn.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        queue: WorkQueue,
        *,
        max_queue_tokens: int,
        counters: Counters,
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._max_queue_tokens = max_queue_tokens
        self._counters = counters
        self._work_arrived = asyncio.Event()
        self._arrival_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._reserved_of: Counter[str] = Counter()
        self._stopped = False

    def start(self) -> None:
        """Start one task per session, in the running event loop."""
        self._tasks = [
            asyncio.create_task(self._serve(session), name="kwise batcher")
            for session in self._sessions
        ]

    async def stop(self) -> None:
        """Stop at once: what waits, what runs and whatever comes later gets Unavailable. Drain before where it should not.

        A pass of the model cannot be interrupted: one that runs goes on in its thread, and nobody waits for it.
        """
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        _fail(self._queue.clear(), Unavailable.leaving)

    @contextmanager
    def reserve(self, num_tokens: int, client: str = "") -> Iterator[None]:
        """Admit a group of about `num_tokens`, which is on its way to `submit`, and count it as waiting.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the batcher has stopped.
        """
        self._admit(num_tokens, client)
        self._reserved_of[client] += num_tokens
        try:
            yield
        finally:
            self._reserved_of[client] -= num_tokens
            if not self._reserved_of[client]:
                del self._reserved_of[client]

    def submit(
        self, sequences: Sequence[EncodedSequence], priority: Priority, client: str = ""
    ) -> "list[asyncio.Future[Finished]]":
        """One future per sequence of a group that was admitted. Cancel a future to take its sequence out of the queue.

        The future raises ModelFailed where the runtime failed on this sequence, Unavailable where the batcher stopped first.

        Raises:
            Unavailable: the batcher has stopped.
        """
        if self._stopped:
            raise Unavailable.leaving()
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Finished]] = []
        for sequence in sequences:
            future: asyncio.Future[Finished] = loop.create_future()
            future.add_done_callback(self._abandon)
            futures.append(future)
            self._queue.add(
                Work(
                    sequence=sequence,
                    priority=priority,
                    client=client,
                    arrival_s=loop.time(),
                    future=future,
                )
            )
        if futures and not self._work_arrived.is_set():
            self._arrival_s = loop.time()
            self._work_arrived.set()
        return futures

    def hasten(self, future: "asyncio.Future[Finished]", priority: Priority, client: str) -> None:
        """`client` waits for it too, with `priority`: it takes the better turn."""
        self._queue.hasten(future, priority, client)

    def _abandon(self, future: "asyncio.Future[Finished]") -> None:
        """A future is done, perhaps before its turn."""
        if self._queue.abandon(future):
            self._counters.abandoned += 1

    def _admit(self, num_tokens: int, client: str) -> None:
        if self._stopped:
            raise Unavailable.leaving()
        queued = self._queue.num_tokens + self._reserved_of.total()
        own = self._queue.num_tokens_of(client) + self._reserved_of[client]
        excess = queued + num_tokens - self._max_queue_tokens
        if own:
            excess += own + num_tokens
        if queued and excess > 0:
            self._counters.rejected_groups += 1
            raise Overloaded(
                queued, own, self._max_queue_tokens, self._seconds_for(min(excess, queued))
            )

    async def _serve(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, thread_name_prefix=SESSION_THREADS)
        free_since_s = loop.time()
        try:
            while True:
                batch = self._take(session)
                if batch:
                    self._counters.idle_with_work_s += loop.time() - free_since_s
                    await self._answer(session, thread, batch)
                    free_since_s = loop.time()
                else:
                    self._work_arrived.clear()
                    await self._work_arrived.wait()
                    free_since_s = self._arrival_s
        finally:
            thread.shutdown(
                wait=False
            )  # waiting would stop the event loop for as long as the pass takes

    def _take(self, session: Session) -> list[Work]:
        try:
            return self._queue.take(session.prompt_cache.prefixes)
        except Exception:  # noqa: BLE001 - a fault of ours, and no reason to leave everybody waiting for ever
            _LOG.exception("no batch could be made: all that waits fails")
            _fail(self._queue.clear(), ModelFailed)
            return []

    async def _answer(
        self, session: Session, thread: ThreadPoolExecutor, batch: Sequence[Work]
    ) -> None:
        """Run the batch; no future of it is left undecided, whatever happens."""
        try:
            await self._run(session, thread, batch)
        finally:
            _fail(batch, Unavailable.leaving)

    async def _run(
        self, session: Session, thread: ThreadPoolExecutor, batch: Sequence[Work]
    ) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            passed = await loop.run_in_executor(
                thread, session.run, [work.sequence for work in batch]
            )
            if len(passed.rewards) != len(batch):
                raise RuntimeError(
                    f"the session answered {len(batch)} sequences with {len(passed.rewards)} rewards"
                )
            if len(batch) > 1 and not all(map(math.isfinite, passed.rewards)):
                raise RuntimeError(
                    "rewards that are not numbers, which may have come from one sequence to its company"
                )
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is the fault of some sequence in the batch
            await self._run_in_halves(session, thread, batch, error)
            return
        model_s = loop.time() - started_s
        self._counters.busy_s += model_s
        self._counters.model_passes += 1
        self._counters.sequences += len(batch)
        self._counters.rows += passed.num_rows
        self._counters.reused_rows += passed.num_reused
        self._counters.unshared_rows += sum(len(work.sequence.token_ids) for work in batch)
        for work, raw in zip(batch, passed.rewards, strict=True):
            if work.future.done():
                continue
            if not math.isfinite(raw):
                _LOG.error(
                    "the model gave %s for a sequence of %d tokens",
                    raw,
                    len(work.sequence.token_ids),
                )
                _fail([work], ModelFailed)
                continue
            queue_s = started_s - work.arrival_s
            work.future.set_result(Finished(raw=float(raw), queue_s=queue_s, model_s=model_s))

    async def _run_in_halves(
        self, session: Session, thread: ThreadPoolExecutor, batch: Sequence[Work], error: Exception
    ) -> None:
        if len(batch) == 1:
            _LOG.error("the model failed on a sequence of %d tokens", batch[0].cost, exc_info=error)
            _fail(batch, ModelFailed)
            return
        _LOG.warning("a batch of %d sequences failed and is run in halves: %s", len(batch), error)
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            if wanted := [work for work in half if not work.future.done()]:
                await self._run(session, thread, wanted)

    def _seconds_for(self, num_tokens: int) -> float:
        """How long the sessions take for so many, at the rate they have had; 0.05 to 10, for it is a guess."""
        rate = (
            self._counters.unshared_rows / self._counters.busy_s
            if self._counters.busy_s
            else 1000.0
        )
        return min(max(0.05, num_tokens / rate / len(self._sessions)), 10.0)


def _fail(batch: Sequence[Work], error: Callable[[], KwiseError]) -> None:
    """Answer what has no answer yet, each with an error of its own."""
    for work in batch:
        if not work.future.done():
            work.future.set_exception(error())
            work.future.exception()  # whoever waited may have left: then nobody retrieves it, which is not a fault
