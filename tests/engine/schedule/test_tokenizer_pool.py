"""Groups are tokenised in fair order, and only while somebody waits for them."""

import asyncio
import threading
from collections.abc import Iterable

import numpy as np

from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.in_flight import RewardInFlight, TokenizerJob
from kwise.engine.schedule.tokenizer_pool import TokenizerPool
from kwise.engine.sequence import EncodedSequence
from kwise.errors import InvalidRequest
from kwise.types import Group, Priority
from tests.servers import PATIENCE_S

GREEDY = Flow(Priority.BULK, "greedy")
MODEST = Flow(Priority.INTERACTIVE, "modest")


class Stage:
    """A pool of one thread, which waits at `gate`, and the order in which it tokenised."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.order: list[str] = []
        self.released: list[RewardInFlight] = []
        self.pool = TokenizerPool(
            self.encode, num_threads=1, submit=self.submit, release=self.released.append
        )

    def encode(self, group: Group) -> list[EncodedSequence | InvalidRequest]:
        assert self.gate.wait(PATIENCE_S)
        self.order.append(str(group.responses[0]))
        if group.responses[0] == "lost":
            return []
        if group.responses[0] == "bad":
            return [InvalidRequest("text", "it is bad", response=0)]
        ids = np.array([1, 2, 3])
        return [EncodedSequence(token_ids=ids, type_ids=None, num_tokens=len(ids))]

    def submit(self, rewards: Iterable[RewardInFlight]) -> None:
        for reward in rewards:
            reward.future.set_result(0.0)

    def add(self, name: str, flow: Flow) -> RewardInFlight:
        job = TokenizerJob(group=Group(prompt=(), responses=(name,)), rewards=[], admitted_at_s=0)
        reward = RewardInFlight(key=b"", client=flow.client, cost=1, job=job)
        reward.waiters[flow] += 1
        job.rewards.append(reward)
        self.pool.add(job)
        return reward


async def test_jobs_run_in_the_order_of_fair_queueing() -> None:
    stage = Stage()
    stage.pool.start()
    rewards = {name: stage.add(name, GREEDY) for name in "abcdef"}
    await asyncio.sleep(0)  # the first one is in the thread now
    stage.pool.join(rewards["e"], MODEST)
    stage.pool.leave(rewards["c"], GREEDY)
    rewards.pop("c").future.cancel()
    rewards["g"] = stage.add("g", MODEST)
    stage.gate.set()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(reward.future for reward in rewards.values()))
    await stage.pool.stop()
    assert stage.order == ["a", "e", "g", "b", "d", "f"]


async def test_a_response_that_cannot_be_tokenised_is_released_with_its_error() -> None:
    stage = Stage()
    stage.gate.set()
    stage.pool.start()
    bad = stage.add("bad", MODEST)
    await asyncio.wait([bad.future], timeout=PATIENCE_S)
    await stage.pool.stop()
    assert isinstance(bad.future.exception(), InvalidRequest)
    assert stage.released == [bad]


async def test_a_wrong_number_of_outcomes_is_an_error_and_the_pool_goes_on() -> None:
    stage = Stage()
    stage.gate.set()
    stage.pool.start()
    lost, good = stage.add("lost", MODEST), stage.add("good", MODEST)
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([lost.future, good.future])
    await stage.pool.stop()
    assert isinstance(lost.future.exception(), RuntimeError)
    assert stage.released == [lost]
    assert good.future.result() == 0
