"""One replica on simulated time: kwise's policy, caches and admission, with a modelled pass.

What is real: `FairBatching` with the trie's batch builder and its fair queue, `PromptCache` with
`plan_reuse` and `cache_prompts`, `RewardCache`, `Admission`. So batches, rows and cache hits are
those of a server. What is modelled: the seconds of a pass (`PassTime`), and a constant time for a
call outside the queue and the model. Joining a reward in flight works as in `Scorer`.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from kwise.benchmarks.capacity.load import Call, Response
from kwise.benchmarks.capacity.pass_time import PassSize, PassTime
from kwise.engine.cache.reward_cache import ENTRY_BYTES, RewardCache
from kwise.engine.config import EngineConfig
from kwise.engine.model.layouts.trie import TrieLayout
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.prefix_reuse import cache_prompts, plan_reuse
from kwise.engine.schedule.admission import Admission
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.policy import FairBatching
from kwise.engine.trie import KEY_BYTES
from kwise.errors import Overloaded
from kwise.types import Priority, Reward

_FLOW = Flow(Priority.INTERACTIVE, "")
_REWARD = Reward(value=0.0, raw=0.0, tokens=0)


NO_STATES = [np.empty((0, 0), np.float32)]
"""The states of a prompt cache that holds no keys and values, only the prefixes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """A replica's speed and limits.

    Attributes:
        pass_time: the seconds of a pass.
        overhead_s: seconds of a call outside queue and model: network, tokenizer, event loop.
        max_batch_tokens, max_queue_tokens: as in `EngineConfig`; by default those of a CPU.
        prompt_cache_tokens: tokens of prompts in the prompt cache; 0 for none.
        cached_rewards: rewards in the reward cache; 0 for none.
    """

    pass_time: PassTime
    overhead_s: float = 0.0
    max_batch_tokens: int = EngineConfig().effective_max_batch_tokens
    max_queue_tokens: int = EngineConfig().max_queue_tokens
    prompt_cache_tokens: int = 0
    cached_rewards: int = 0


@dataclass(slots=True, kw_only=True)
class ReplicaCounters:
    """The counters of a replica, named as those of the server."""

    passes: int = 0
    sequences: int = 0
    rows: int = 0
    reused_rows: int = 0
    busy_s: float = 0.0
    responses: int = 0
    cache_hits: int = 0
    joined: int = 0
    refused: int = 0


@dataclass(slots=True, eq=False)
class _Reply:
    """A call that waits. The event's value is True once it is answered, False if it was lost."""

    event: simpy.Event
    remaining: int


@dataclass(slots=True, eq=False)
class _InFlight:
    """A response that waits for a pass or is in one, and the calls that wait for it."""

    response: Response
    client: str = ""
    queued_tokens: int = 0
    replies: list[_Reply] = field(default_factory=list)

    @property
    def cost(self) -> int:
        return self.response.cost

    @property
    def sort_key(self) -> bytes:
        return self.response.sort_key

    @property
    def prompt_key(self) -> bytes:
        return self.response.prompt_key


class Replica:
    """A server with one session. It serves from when it is made until `stop`.

    number: tells it from other replicas; routers hash it.
    passes: start and end in seconds, and rows, of every pass, if `record_passes` is set.
    """

    def __init__(
        self,
        env: simpy.Environment,
        config: ReplicaConfig,
        number: int = 0,
        *,
        record_passes: bool = False,
    ) -> None:
        self.number = number
        self.config = config
        self.counters = ReplicaCounters()
        self.passes: deque[tuple[float, float, int]] = deque(maxlen=None if record_passes else 0)
        self.admission = Admission(config.max_queue_tokens, self._seconds_for)
        self._env = env
        self._policy: FairBatching[_InFlight] = FairBatching(
            TrieLayout.new_batch, max_batch_tokens=config.max_batch_tokens
        )
        # States without width, so that a token takes the bytes of its key alone.
        self._prompts = PromptCache(KEY_BYTES * config.prompt_cache_tokens)
        self._rewards = RewardCache(ENTRY_BYTES * config.cached_rewards)
        self._in_flight: dict[bytes, _InFlight] = {}
        self._running_tokens = 0
        self._work_arrived = env.event()
        self._process = env.process(self._serve())

    @property
    def pending_tokens(self) -> int:
        """The tokens that wait or run: what a router may balance."""
        return self.admission.num_tokens + self._running_tokens

    def submit(self, call: Call) -> simpy.Event:
        """Take a call. The event's value is True once every reward exists, False if it is lost.

        Raises:
            Overloaded: the queue is full. Nothing was started or joined.
        """
        keys = [response.sort_key for response in call.responses]
        missing = {
            key: response
            for key, response in zip(keys, call.responses, strict=True)
            if self._rewards.get(key) is None
        }
        new = {key: r for key, r in missing.items() if key not in self._in_flight}
        if new:
            try:
                self.admission.check(sum(response.cost for response in new.values()), "")
            except Overloaded:
                self.counters.refused += 1
                raise
        self.counters.responses += len(keys)
        self.counters.cache_hits += len(keys) - len(missing)
        self.counters.joined += len(missing) - len(new)
        reply = _Reply(self._env.event(), len(missing))
        for key, response in missing.items():
            if key in new:
                item = self._in_flight[key] = _InFlight(response)
                self.admission.count(item)
                self._policy.add(item, _FLOW)
            self._in_flight[key].replies.append(reply)
        if not missing:
            reply.event.succeed(True)
        elif not self._work_arrived.triggered:
            self._work_arrived.succeed()
        return reply.event

    def stop(self) -> None:
        """Die. Everything that waits or runs is lost, and its calls are told."""
        self._process.interrupt()
        replies = {id(r): r for item in self._in_flight.values() for r in item.replies}
        self._in_flight.clear()
        for reply in replies.values():
            if not reply.event.triggered:
                reply.event.succeed(False)

    def _serve(self) -> Generator[Any, Any, None]:
        try:
            while True:
                batch = self._policy.take(self._prompts.prefixes)
                if batch:
                    yield from self._run(batch)
                else:
                    self._work_arrived = self._env.event()
                    yield self._work_arrived
        except simpy.Interrupt:
            return

    def _run(self, batch: list[_InFlight]) -> Generator[Any, Any, None]:
        for item in batch:
            self.admission.release(item)
        self._running_tokens = sum(item.cost for item in batch)
        reuse = plan_reuse([item.response.sequence for item in batch], self._prompts, NO_STATES)
        size = PassSize.of(reuse)
        seconds = self.config.pass_time.seconds(size)
        started_s = self._env.now
        yield self._env.timeout(seconds)
        self._running_tokens = 0
        cache_prompts(reuse, [np.empty((len(reuse.nodes_to_cache), 0), np.float32)], self._prompts)
        counters = self.counters
        counters.passes += 1
        counters.sequences += len(batch)
        counters.rows += size.rows
        counters.reused_rows += reuse.trie.num_nodes - size.rows
        counters.busy_s += seconds
        self.passes.append((started_s, self._env.now, size.rows))
        for item in batch:
            del self._in_flight[item.sort_key]
            if self.config.cached_rewards:
                self._rewards.put(item.sort_key, _REWARD)
            for reply in item.replies:
                reply.remaining -= 1
                if not reply.remaining:
                    reply.event.succeed(True)

    def _seconds_for(self, num_tokens: int) -> float:
        return num_tokens * self.config.pass_time.per_row_s
