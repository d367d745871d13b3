"""Rewards in flight that another server computes, and which this one waits for.

Two servers that get the same request at about the same time share its rewards, as two requests to
one server do. The one that asks the shared cache first claims a reward and computes it. The other
one asks again every 20 ms until the reward is there. If the claim has ended without a reward,
because its server failed or was too slow, the reward is computed here after all. So a server that
dies with a claim costs those who wait at most the time that a claim holds.

The rewards are admitted and in flight meanwhile, so requests join and leave them as any others.
Waiting for one reward does not delay its siblings, which are computed at once. Otherwise two
servers could wait for each other.
"""

import asyncio
from collections.abc import Callable

from kwise.engine.cache.shared_cache import SharedCache
from kwise.engine.schedule.in_flight import RewardInFlight, TokenizerJob
from kwise.engine.statistics.counters import Counters

# One MGET serves all rewards that wait, so a shorter time would cost little and gain little.
POLL_S = 0.02


class ClaimedElsewhere:
    """Waits for rewards that other servers have claimed. Used from one event loop.

    Args:
        shared_cache: where the claims and the rewards are.
        compute: takes the rewards that this server has to compute after all.
        release: takes each reward that it has not to compute.
        counters: `shared_joined` counts rewards that came from other servers.
    """

    def __init__(
        self,
        shared_cache: SharedCache,
        *,
        compute: Callable[[TokenizerJob], None],
        release: Callable[[RewardInFlight], None],
        counters: Counters,
    ) -> None:
        self._shared_cache = shared_cache
        self._compute = compute
        self._release = release
        self._counters = counters
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, job: TokenizerJob) -> None:
        """Wait for the rewards of `job` in the background."""
        task = asyncio.create_task(self._wait(job), name="kwise claimed elsewhere")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Stop at once. The rewards stay undecided."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, job: TokenizerJob) -> None:
        loop = asyncio.get_running_loop()
        give_up_at_s = loop.time() + self._shared_cache.limits.claim_s
        waiting = {reward.key: reward for reward in job.rewards}
        while waiting:
            await asyncio.sleep(POLL_S)
            waiting = {key: reward for key, reward in waiting.items() if not reward.future.done()}
            looked_up = await self._shared_cache.ask(waiting)
            for key, stored in looked_up.rewards.items():
                reward = waiting.pop(key)
                if not reward.future.done():
                    self._release(reward)
                    reward.receive(stored)
                    self._counters.shared_joined += 1
            elsewhere = looked_up.elsewhere if loop.time() < give_up_at_s else set()
            here = {
                key
                for key, reward in waiting.items()
                if key not in elsewhere and not reward.future.done()
            }
            if part := job.part(here):
                self._compute(part)
            waiting = {key: reward for key, reward in waiting.items() if key in elsewhere}
