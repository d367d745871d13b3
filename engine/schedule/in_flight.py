"""A reward that is being computed. One object and one future carry it from admission to reply."""

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from kwise.engine.cache.reward_cache import StoredReward
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import KEY_BYTES, sort_key
from kwise.types import Group, RawReward


@dataclass(slots=True, kw_only=True, eq=False)
class RewardInFlight:
    """One reward and the requests that wait for it.

    Attributes:
        key: the key of the reward in the reward cache.
        client: the client whose request started it, and whose share of the queue it takes.
        future: the raw reward, of each member if the model has members. It raises InvalidRequest,
            ModelFailed or Unavailable. It is cancelled when the last waiting request leaves.
        waiters: the number of requests that wait, by flow.
        job: the tokenizer job that the reward is part of; None once nobody waits for the reward.
        cost: tokens of the conversation: an estimate until `sequence` is set.
        queued_tokens: the tokens that admission counts for it now.
        sequence: the tokens, once the tokenizer has run.
        sort_key: the tokens as bytes that sort like them; empty until then.
        prompt_key: the beginning of it that all responses to the same prompt share.
        received: the reward, if another server computed it.
        tokenizer_s, queue_s, model_s: seconds that it spent before the tokenizer's result, in the
            queue, and in the model's pass.
        queued_at_s: the time at which it entered the batching queue, on the event loop's clock.
    """

    key: bytes
    client: str
    cost: int
    queued_tokens: int = 0
    future: "asyncio.Future[RawReward]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    waiters: Counter[Flow] = field(default_factory=Counter)
    job: "TokenizerJob | None" = None
    sequence: EncodedSequence | None = None
    sort_key: bytes = b""
    prompt_key: bytes = b""
    received: StoredReward | None = None
    tokenizer_s: float = 0.0
    queue_s: float = 0.0
    model_s: float = 0.0
    queued_at_s: float = 0.0

    @property
    def is_computed(self) -> bool:
        """True once the future holds a reward, and no error."""
        future = self.future
        return future.done() and not future.cancelled() and future.exception() is None

    @property
    def stored(self) -> StoredReward:
        """The reward as caches hold it. Raises what the future raises."""
        raw = self.future.result()
        if self.received is not None:
            return self.received
        assert self.sequence is not None, "a reward that was computed here has been tokenised"
        return StoredReward(
            raw=raw,
            tokens=self.sequence.num_tokens,
            dropped_tokens=self.sequence.dropped_tokens,
            control_tokens=self.sequence.control_tokens,
        )

    def receive(self, reward: StoredReward) -> None:
        """Decide the reward by what another server computed."""
        self.received = reward
        self.future.set_result(reward.raw)

    def set_sequence(self, sequence: EncodedSequence) -> None:
        """Set the tokens, and with them the exact cost."""
        self.sequence = sequence
        self.sort_key = sort_key(sequence.token_ids)
        self.prompt_key = self.sort_key[: KEY_BYTES * sequence.prompt_tokens]
        self.cost = len(sequence.token_ids)

    def fail(self, error: Exception) -> None:
        """Raise `error` in every waiting request, unless the reward is decided already."""
        if not self.future.done():
            self.future.set_exception(error)
            # asyncio logs an exception that nobody retrieves, and every request may leave.
            self.future.exception()


@dataclass(slots=True, kw_only=True, eq=False)
class TokenizerJob:
    """Responses to one prompt that are tokenised together.

    Attributes:
        group: the prompt, with the responses that no other request has in flight.
        rewards: one per response of `group`, in order.
        admitted_at_s: the time at which the group was admitted, on the event loop's clock.
    """

    group: Group
    rewards: list[RewardInFlight]
    admitted_at_s: float

    @property
    def cost(self) -> int:
        """The estimated tokens of all its conversations."""
        return sum(reward.cost for reward in self.rewards)

    def part(self, keys: Collection[bytes]) -> "TokenizerJob | None":
        """Return the job of those rewards whose key is in `keys`; None if there are none."""
        indices = [index for index, reward in enumerate(self.rewards) if reward.key in keys]
        if not indices:
            return None
        responses: Any = tuple(self.group.responses[index] for index in indices)
        job = TokenizerJob(
            group=replace(self.group, responses=responses),
            rewards=[self.rewards[index] for index in indices],
            admitted_at_s=self.admitted_at_s,
        )
        for reward in job.rewards:
            reward.job = job
        return job
