"""Rewards on their way through the batcher, as the scorer makes and leaves them."""

from kwise.engine.schedule.batcher import Batcher
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.in_flight import RewardInFlight
from kwise.engine.sequence import EncodedSequence


def reward_in_flight(sequence: EncodedSequence, flow: Flow) -> RewardInFlight:
    """Return the reward of a sequence for which one request of `flow` waits."""
    reward = RewardInFlight(key=b"", client=flow.client, cost=0)
    reward.waiters[flow] += 1
    reward.set_sequence(sequence)
    return reward


def leave(batcher: Batcher, reward: RewardInFlight) -> None:
    """Let the last request that waits for the reward leave."""
    for flow in reward.waiters:
        batcher.leave(reward, flow)
    batcher.admission.release(reward)
    reward.future.cancel()
