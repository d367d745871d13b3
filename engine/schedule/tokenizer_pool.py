"""Tokenise admitted groups in threads, in fair order, and submit those that can be scored.

Tokenising has a fair queue of its own. Otherwise one client's long texts could occupy all threads,
and the requests of other clients would wait before they reach the fair queue of the batcher.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kwise.engine.schedule.fair_queue import FairQueue, Flow
from kwise.engine.schedule.in_flight import RewardInFlight, TokenizerJob
from kwise.engine.sequence import EncodedSequence
from kwise.errors import InvalidRequest
from kwise.types import Group

Encode = Callable[[Group], Sequence[EncodedSequence | InvalidRequest]]


class TokenizerPool:
    """Runs `encode` in `num_threads` threads. Used from one event loop, after `start`.

    Args:
        encode: returns one outcome per response of a group, in order. Thread-safe.
        submit: takes the rewards of a group whose sequences are set and that somebody waits for.
        release: takes each reward that is not submitted.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        num_threads: int,
        submit: Callable[[Iterable[RewardInFlight]], None],
        release: Callable[[RewardInFlight], None],
    ) -> None:
        self._encode = encode
        self._submit = submit
        self._release = release
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="kwise-tokenizer")
        self._queue: FairQueue[TokenizerJob] = FairQueue()
        self._job_arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start one task per thread in the running event loop."""
        self._tasks = [
            asyncio.create_task(self._serve(), name="kwise tokenizer")
            for _ in range(self._num_threads)
        ]

    async def stop(self) -> None:
        """Stop at once. Waiting jobs are dropped; a thread that is tokenising finishes its job."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._queue.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def add(self, job: TokenizerJob) -> None:
        """Queue a job in the flows of all requests that wait for its rewards."""
        for reward in job.rewards:
            for flow in reward.waiters:
                self._queue.add(job, flow)
        self._job_arrived.set()

    def join(self, reward: RewardInFlight, flow: Flow) -> None:
        """Let a request of another flow wait for the reward, if its job is still queued."""
        if reward.job is not None and reward.job in self._queue:
            self._queue.add(reward.job, flow)

    def leave(self, reward: RewardInFlight, flow: Flow) -> None:
        """Undo one `join`. A job that nobody waits for is never tokenised."""
        if reward.job is not None:
            self._queue.remove(reward.job, flow)

    async def _serve(self) -> None:
        while True:
            if (next_job := next(self._queue.in_order(), None)) is None:
                self._job_arrived.clear()
                await self._job_arrived.wait()
            else:
                self._queue.take([next_job], [next_job[0].cost])
                await self._run(next_job[0])

    async def _run(self, job: TokenizerJob) -> None:
        loop = asyncio.get_running_loop()
        try:
            outcomes = await loop.run_in_executor(self._threads, self._encode_or_raise, job.group)
        except Exception as error:  # noqa: BLE001 - raised again in every request that waits
            outcomes = [error] * len(job.rewards)
        tokenizer_s = loop.time() - job.admitted_at_s
        scorable = []
        for reward, outcome in zip(job.rewards, outcomes, strict=True):
            reward.tokenizer_s = tokenizer_s
            if reward.future.done():
                continue
            if isinstance(outcome, Exception):
                self._release(reward)
                reward.fail(outcome)
            else:
                reward.set_sequence(outcome)
                scorable.append(reward)
        self._submit(scorable)

    def _encode_or_raise(self, group: Group) -> Sequence[EncodedSequence | Exception]:
        try:
            outcomes = self._encode(group)
        except Exception:
            raise
        except BaseException as panic:
            # A panic in the tokenizers library is not an Exception, and asyncio expects only those.
            raise RuntimeError("the tokenizer panicked") from panic
        if len(outcomes) != len(group.responses):
            num_responses = len(group.responses)
            raise RuntimeError(f"{len(outcomes)} token sequences for {num_responses} responses")
        return outcomes
