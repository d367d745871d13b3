"""Move sequences from the policy through the sessions. The policy decides; this only moves data.

One task per session takes a batch whenever something waits and the device has no other pass to run.
It never waits on purpose to fill a batch. The session runs in a thread of its own, where the
runtime releases the GIL, and another thread prepares the batch that probably comes next. A batch
that fails, because memory ran out or because of one sequence, is run again in halves, and those in
halves, so that only a sequence that fails alone gets the error.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from kwise.engine.model.layouts.protocol import Pass, is_finite, raw_rewards_of
from kwise.engine.model.session import Session
from kwise.engine.schedule.admission import Admission
from kwise.engine.schedule.device_turns import DeviceTurns, Share
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.in_flight import RewardInFlight
from kwise.engine.schedule.next_batch import NextBatch
from kwise.engine.schedule.policy import Policy
from kwise.engine.sequence import EncodedSequence
from kwise.engine.statistics.counters import Counters
from kwise.errors import KwiseError, ModelFailed, Unavailable

_LOG = logging.getLogger(__name__)
SESSION_THREADS = "kwise-session"  # the prefix of the names of threads that run the model

# The rate that retry advice assumes until a pass of the model has been timed.
_TOKENS_PER_S = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """A session, the thread that runs it, and the batch that is prepared for it meanwhile.

    started: see `Session.prepare`. It has the next batches prepared.
    """

    session: Session
    thread: ThreadPoolExecutor
    next_batch: NextBatch
    started: Callable[[], None]


class Batcher:
    """Runs submitted rewards through `sessions`. Used from one event loop, after `start`.

    Args:
        turns: the turns of each session's device, if other models use it as well.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        policy: Policy[RewardInFlight],
        *,
        max_queue_tokens: int,
        counters: Counters,
        turns: Sequence[DeviceTurns] = (),
    ) -> None:
        self.admission = Admission(max_queue_tokens, self._seconds_for)
        self._sessions = sessions
        self._turns = turns or [DeviceTurns() for _ in sessions]
        self._policy = policy
        self._counters = counters
        self._work_arrived = asyncio.Event()
        self._arrival_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._running: list[NextBatch] = []  # of the sessions that run, in order of their start

    def start(self) -> None:
        """Start one task per session in the running event loop."""
        self._tasks = [
            asyncio.create_task(self._serve(session, turns), name="kwise batcher")
            for session, turns in zip(self._sessions, self._turns, strict=True)
        ]

    async def stop(self) -> None:
        """Stop at once. Waiting and running rewards get Unavailable.

        A pass of the model cannot be interrupted: it ends in its thread, and its result is lost.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        _fail(self._policy.clear(), Unavailable.draining)

    @property
    def num_waiting(self) -> int:
        """The number of sequences that wait for a batch."""
        return len(self._policy)

    def submit(self, rewards: Iterable[RewardInFlight]) -> None:
        """Queue admitted rewards, whose `sequence` is set, for the model.

        Each future gets the raw reward, or raises ModelFailed if the runtime failed on this
        sequence, or Unavailable if the batcher stopped first.
        """
        now_s = asyncio.get_running_loop().time()
        for reward in rewards:
            reward.queued_at_s = now_s
            self.admission.count(reward)
            for flow in reward.waiters:
                self._policy.add(reward, flow)
        if len(self._policy) and not self._work_arrived.is_set():
            self._arrival_s = now_s
            self._work_arrived.set()
        self._predict()

    def join(self, reward: RewardInFlight, flow: Flow) -> None:
        """Let a request of another flow wait for the reward too. This may make it earlier."""
        if reward in self._policy:
            self._policy.add(reward, flow)

    def leave(self, reward: RewardInFlight, flow: Flow) -> None:
        """Undo one `join`, or the submission. A reward that nobody waits for leaves the queue."""
        if self._policy.remove(reward, flow):
            self._counters.abandoned += 1

    async def _serve(self, session: Session, turns: DeviceTurns) -> None:
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, SESSION_THREADS)
        preparing = ThreadPoolExecutor(1, f"{SESSION_THREADS}-next")

        def started() -> None:
            with suppress(RuntimeError):  # the loop may be closed before a pass begins
                loop.call_soon_threadsafe(self._predict)

        next_batch = NextBatch(session, self._policy, preparing, started)
        device = _Device(session=session, thread=thread, next_batch=next_batch, started=started)
        share = Share()
        free_since_s = loop.time()
        try:
            while True:
                if not len(self._policy):
                    self._work_arrived.clear()
                    await self._work_arrived.wait()
                    free_since_s = self._arrival_s
                async with turns.turn(share) as has_waited:
                    if has_waited:  # the device was not free
                        free_since_s = loop.time()
                    # As late as possible, so that what arrived meanwhile is part of it.
                    if batch := self._take(session):
                        self._counters.idle_with_work_s += loop.time() - free_since_s
                        await self._answer(device, batch)
                        free_since_s = loop.time()
                    del batch  # its rewards must not stay in memory until the next one
        finally:
            thread.shutdown(wait=False)  # waiting would block the event loop until the pass ends
            preparing.shutdown(wait=False)

    def _take(self, session: Session) -> list[RewardInFlight]:
        try:
            batch = self._policy.take(session.prompt_cache.prefixes)
        except Exception:  # noqa: BLE001 - a bug here must not leave every request waiting
            _LOG.exception("the policy failed to make a batch: everything that waits fails")
            waiting = self._policy.clear()
            _fail(waiting, ModelFailed)
            batch = []
        else:
            waiting = batch
        for reward in waiting:
            self.admission.release(reward)
        return batch

    def _predict(self) -> None:
        """Let the sessions have their next batches prepared, unless one is free and takes it."""
        if len(self._running) < len(self._sessions):
            return
        for next_batch in self._running:
            others = [other.rewards for other in self._running if other is not next_batch]
            next_batch.predict({reward for rewards in others for reward in rewards})

    async def _answer(self, device: _Device, batch: list[RewardInFlight]) -> None:
        """Run the batch. All of its futures are decided afterwards, whatever happens."""
        self._running.append(device.next_batch)
        try:
            await self._run(device, batch, device.next_batch.take(batch))
        finally:
            self._running.remove(device.next_batch)
            _fail(batch, Unavailable.draining)

    async def _run(
        self,
        device: _Device,
        batch: Sequence[RewardInFlight],
        prepared: Awaitable[Callable[[], Pass] | None] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        sequences = [reward.sequence for reward in batch if reward.sequence is not None]
        started_s = loop.time()
        try:
            run = await prepared if prepared is not None else None
            running = loop.run_in_executor(
                device.thread, run or partial(_run_unprepared, device, sequences)
            )
            del run  # the inputs of a batch that fails must not stay in memory while it runs again
            result = await running
            if len(result.rewards) != len(batch):
                problem = f"{len(result.rewards)} rewards for {len(batch)} sequences"
                raise RuntimeError(f"the session returned {problem}")
            raw_rewards = raw_rewards_of(result)
            if len(batch) > 1 and not all(map(is_finite, raw_rewards)):
                # One sequence may have spoiled the others. Running halves shows which.
                raise RuntimeError("the session returned rewards that are not finite")
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything for a bad sequence
            await self._run_in_halves(device, batch, error)
            return
        model_s = loop.time() - started_s
        self._counters.busy_s += model_s
        self._counters.model_passes += 1
        self._counters.sequences += len(batch)
        self._counters.rows += result.num_rows
        self._counters.reused_rows += result.num_reused
        self._counters.unshared_rows += sum(reward.cost for reward in batch)
        passes = self._counters.passes
        passes.rows.observe(result.num_rows)
        passes.sequences.observe(len(batch))
        passes.seconds.observe(model_s)
        for reward, raw in zip(batch, raw_rewards, strict=True):
            if reward.future.done():
                continue
            reward.queue_s, reward.model_s = started_s - reward.queued_at_s, model_s
            if is_finite(raw):
                reward.future.set_result(raw)
            else:
                _LOG.error("the model returned %s for a sequence of %d tokens", raw, reward.cost)
                self._counters.failed_sequences += 1
                reward.fail(ModelFailed())

    async def _run_in_halves(
        self, device: _Device, batch: Sequence[RewardInFlight], error: Exception
    ) -> None:
        if len(batch) == 1:
            _LOG.error("the model failed on a sequence of %d tokens", batch[0].cost, exc_info=error)
            self._counters.failed_sequences += 1
            _fail(batch, ModelFailed)
            return
        _LOG.warning("a batch of %d sequences failed; running it in halves: %s", len(batch), error)
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            if undecided := [reward for reward in half if not reward.future.done()]:
                await self._run(device, undecided)

    def _seconds_for(self, num_tokens: int) -> float:
        """Estimate the seconds that the sessions take for `num_tokens`, from their rate so far."""
        busy_s = self._counters.busy_s
        rate = self._counters.unshared_rows / busy_s if busy_s else _TOKENS_PER_S
        return num_tokens / rate / len(self._sessions)


def _run_unprepared(device: _Device, batch: Sequence[EncodedSequence]) -> Pass:
    return device.session.prepare(batch, device.started)()


def _fail(rewards: Sequence[RewardInFlight], error: Callable[[], KwiseError]) -> None:
    """Raise an error in every undecided reward; each gets an instance of its own."""
    for reward in rewards:
        reward.fail(error())
