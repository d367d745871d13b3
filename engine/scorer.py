"""Scores groups of responses: `Scorer.score` is the whole way of a request, top to bottom.

A request is checked, looked up in the cache, and admitted. What is neither cached nor in flight
starts one `RewardInFlight` per response, which passes the tokenizer pool and the batcher and is
decided by one future. A request that asks for a reward in flight joins it. The last request that
leaves a reward cancels it.

The scorer knows no protocol: gRPC, commands and tests call the same method. One event loop owns all
of its state.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from kwise.engine.artifact import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import effective_max_tokens, open_model
from kwise.engine.model.layouts import LAYOUTS
from kwise.engine.model.session import Session
from kwise.engine.reward_cache import RewardCache, StoredReward, reward_keys
from kwise.engine.schedule.batcher import Batcher
from kwise.engine.schedule.counters import Counters
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.group_times import GroupTimes
from kwise.engine.schedule.in_flight import RewardInFlight, TokenizerJob
from kwise.engine.schedule.policy import FairBatching
from kwise.engine.schedule.tokenizer_pool import TokenizerPool
from kwise.engine.slices import TOKEN_IDS_SLICE_ITEMS, in_slices
from kwise.engine.text.encoder import ConversationEncoder
from kwise.errors import InvalidRequest, KwiseError, ModelFailed, Overloaded, Unavailable
from kwise.types import Group, Message, Reward, ScoredGroup, TemplatedText, Timing

# English has about four characters a token. Admission uses this before the tokens are known.
_CHARACTERS_PER_TOKEN = 4


class Scorer:
    """Scores groups with one artifact.

    async with Scorer.load(path, config) as scorer:
        scored = await scorer.score(group)
    """

    def __init__(
        self,
        artifact: Artifact,
        config: EngineConfig,
        encoder: ConversationEncoder,
        sessions: Sequence[Session],
        counters: Counters | None = None,
    ) -> None:
        self.artifact = artifact
        self.config = config
        self.counters = counters or Counters()
        self.runtime = sessions[0].runtime
        self.precision = sessions[0].precision
        self.max_tokens = effective_max_tokens(artifact, config)
        self._encoder = encoder
        self._cache = RewardCache(config.cache_bytes)
        self._namespace = "|".join(
            (
                artifact.manifest.fingerprint,
                self.precision.value,
                self.runtime,
                str(self.max_tokens),
                config.overlong.value,
                config.control_tokens.value,
            )
        ).encode()
        self._in_flight: dict[bytes, RewardInFlight] = {}
        self._is_stopped = False
        self._batcher = Batcher(
            sessions,
            FairBatching(
                LAYOUTS[artifact.manifest.layout].new_batch,
                max_batch_tokens=config.max_batch_tokens,
            ),
            max_queue_tokens=config.max_queue_tokens,
            counters=self.counters,
        )
        self._admission = self._batcher.admission
        self._tokenizers = TokenizerPool(
            encoder.encode,
            num_threads=config.tokenizer_threads,
            submit=self._batcher.submit,
            release=self._admission.release,
        )

    @classmethod
    def load(
        cls, path: Path, config: EngineConfig | None = None, counters: Counters | None = None
    ) -> "Scorer":
        """Load an artifact on each device and check its golden rewards there.

        Args:
            path: the artifact's directory.
            config: the engine's options; None for the defaults.
            counters: those of a scorer that this one takes over from, which go on counting.

        Raises:
            ArtifactError: the artifact is damaged, or a golden reward comes out wrong on this
                runtime and device.
            ConfigError: a device is not available, or a limit does not suit the artifact.
        """
        config = config or EngineConfig()
        model = open_model(path, config)
        return cls(model.artifact, config, model.encoder, model.sessions, counters)

    async def __aenter__(self) -> "Scorer":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def description(self) -> str:
        """The name, fingerprint, layout, precision and runtime of the model, for the log."""
        manifest = self.artifact.manifest
        how = f"{manifest.layout} layout, {self.precision.value}, {self.runtime}"
        return f"{manifest.name} {manifest.fingerprint[:12]} ({how})"

    def start(self) -> None:
        """Begin to serve, in the running event loop."""
        self._batcher.start()
        self._tokenizers.start()

    async def idle(self) -> None:
        """Wait until nothing is being computed, including what is requested meanwhile."""
        while self._in_flight:
            await asyncio.wait([reward.future for reward in self._in_flight.values()])

    async def close(self) -> None:
        """Stop, and release the threads and the model."""
        await self.stop()

    async def stop(self) -> None:
        """Answer everything that waits or runs, and all later requests, with Unavailable."""
        self._is_stopped = True
        await self._tokenizers.stop()
        await self._batcher.stop()
        for reward in self._in_flight.values():
            reward.fail(Unavailable.draining())

    async def score(self, group: Group) -> ScoredGroup:
        """Return one reward or error per response, in order.

        An error of one response is in its place, and its siblings are scored. If the call is
        cancelled, the rewards that nobody else waits for leave the queue.

        Raises:
            InvalidRequest: the group as a whole is malformed, or its prompt is why no response can
                be scored.
            Overloaded: the queue is full. Nothing was started or joined.
            Unavailable: the scorer stops.
            ModelFailed: the runtime failed on every response.
        """
        times = GroupTimes(self.counters.groups)
        with times.success_or_failure():
            keys = await self._keys(group)
            flow = Flow(group.priority, group.client)
            cached = self._look_up(keys)
            times.looked_up()
            in_flight = self._start_or_join(group, keys, cached, flow)
            try:
                if in_flight:
                    await asyncio.wait([reward.future for reward in in_flight.values()])
            finally:
                times.computed()
                self._leave(in_flight.values(), flow)
            scored = self._reply(keys, cached, in_flight)
            times.replied(scored.timing, is_cached=not in_flight)
        return scored

    async def _keys(self, group: Group) -> list[bytes]:
        """Check the group, and return one key per response. Many responses are read in slices."""
        self._encoder.check(group)
        if len(group.responses) <= TOKEN_IDS_SLICE_ITEMS:
            return reward_keys(self._namespace, group)
        keys: list[bytes] = []
        async for responses in in_slices(group.responses, TOKEN_IDS_SLICE_ITEMS):
            part = replace(group, responses=cast(Any, tuple(responses)))
            keys += reward_keys(self._namespace, part)
        return keys

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, StoredReward]:
        """Return the rewards that are cached, by key."""
        looked_up = {key: self._cache.get(key) for key in keys}
        cached = {key: stored for key, stored in looked_up.items() if stored is not None}
        self.counters.cache_hits += len(cached)
        return cached

    def _start_or_join(
        self, group: Group, keys: Sequence[bytes], cached: Mapping[bytes, StoredReward], flow: Flow
    ) -> dict[bytes, RewardInFlight]:
        """Start the rewards that are neither cached nor in flight, and join the others, by key.

        Admission comes first. A refused request leaves no trace, and a request that joins a reward
        never gets the refusal of the request that started it.
        """
        missing = {key: index for index, key in enumerate(keys) if key not in cached}
        new = {key: index for key, index in missing.items() if key not in self._in_flight}
        if self._is_stopped and missing:
            raise Unavailable.draining()
        job = self._admit(group, new) if new else None
        self.counters.joined += len(missing) - len(new)
        in_flight = {key: self._in_flight[key] for key in missing}
        for reward in in_flight.values():
            reward.waiters[flow] += 1
            if reward.waiters[flow] == 1:
                self._tokenizers.join(reward, flow)
                self._batcher.join(reward, flow)
        if job is not None:
            self._tokenizers.add(job)
        return in_flight

    def _admit(self, group: Group, new: Mapping[bytes, int]) -> TokenizerJob:
        """Admit the responses that `new` names by key and index, and put their rewards in flight.

        Raises:
            Overloaded: the queue is full.
        """
        costs = _estimated_tokens(group, new.values(), self.max_tokens)
        try:
            self._admission.check(sum(costs), group.client)
        except Overloaded:
            self.counters.rejected_groups += 1
            raise
        responses: Any = tuple(group.responses[index] for index in new.values())
        job = TokenizerJob(
            group=replace(group, responses=responses),
            rewards=[
                RewardInFlight(key=key, client=group.client, cost=cost)
                for key, cost in zip(new, costs, strict=True)
            ],
            admitted_at_s=asyncio.get_running_loop().time(),
        )
        for reward in job.rewards:
            reward.job = job
            self._admission.count(reward)
            self._in_flight[reward.key] = reward
        return job

    def _leave(self, rewards: Iterable[RewardInFlight], flow: Flow) -> None:
        """Store what was computed, and cancel what nobody waits for any more."""
        for reward in rewards:
            if reward.is_computed:
                self._cache.put(reward.key, _stored(reward))
            reward.waiters[flow] -= 1
            if reward.waiters[flow]:
                continue
            del reward.waiters[flow]
            self._tokenizers.leave(reward, flow)
            self._batcher.leave(reward, flow)
            if not reward.waiters:
                self._admission.release(reward)
                reward.future.cancel()
                del self._in_flight[reward.key]
                # A job has its rewards. Memory is freed at once only if there is no cycle.
                reward.job = None

    def _reply(
        self,
        keys: Sequence[bytes],
        cached: Mapping[bytes, StoredReward],
        computed: Mapping[bytes, RewardInFlight],
    ) -> ScoredGroup:
        rewards: list[Reward | KwiseError] = []
        seen: set[bytes] = set()
        for index, key in enumerate(keys):
            if key in cached:
                rewards.append(self._reward(cached[key], is_cached=True))
            elif isinstance(outcome := _outcome(computed[key]), KwiseError):
                # It may have been started by a request in which the response had another index.
                rewards.append(outcome.at(index))
            else:
                # A response that stands twice in the request is computed once.
                rewards.append(self._reward(outcome, is_cached=key in seen))
                seen.add(key)
        _raise_for_group(rewards)
        manifest = self.artifact.manifest
        return ScoredGroup(
            rewards=tuple(rewards),
            model=manifest.name,
            fingerprint=manifest.fingerprint,
            precision=self.precision.value,
            runtime=self.runtime,
            timing=_slowest(computed.values()),
        )

    def _reward(self, stored: StoredReward, *, is_cached: bool) -> Reward:
        manifest = self.artifact.manifest
        return Reward(
            value=(stored.raw - manifest.reward_mean) / manifest.reward_std,
            raw=stored.raw,
            tokens=stored.tokens,
            dropped_tokens=stored.dropped_tokens,
            control_tokens=stored.control_tokens,
            cached=is_cached,
        )


def _stored(reward: RewardInFlight) -> StoredReward:
    raw = reward.future.result()
    assert reward.sequence is not None, "a computed reward has been tokenised"
    return StoredReward(
        raw=raw,
        tokens=reward.sequence.num_tokens,
        dropped_tokens=reward.sequence.dropped_tokens,
        control_tokens=reward.sequence.control_tokens,
    )


def _outcome(reward: RewardInFlight) -> StoredReward | InvalidRequest | ModelFailed:
    """Return the reward, or the error that may be one response's. Other errors are raised."""
    error = reward.future.exception()
    return error if isinstance(error, InvalidRequest | ModelFailed) else _stored(reward)


def _raise_for_group(rewards: Sequence[Reward | KwiseError]) -> None:
    """Fail the call if no response was scored and none of them is the cause."""
    errors = [reward for reward in rewards if isinstance(reward, KwiseError)]
    if len(errors) == len(rewards) and not any(_is_of_response(error) for error in errors):
        raise ModelFailed() if isinstance(errors[0], ModelFailed) else errors[0]


def _is_of_response(error: KwiseError) -> bool:
    return isinstance(error, InvalidRequest) and error.response is not None


def _estimated_tokens(group: Group, indices: Iterable[int], max_tokens: int) -> list[int]:
    """Estimate the tokens of each conversation from lengths alone.

    Conversations in token ids that exceed the limit cost nothing, because they are refused.
    """
    if isinstance(group.prompt, TemplatedText):
        prompt_length, is_text = len(group.prompt.text), True
    elif isinstance(group.prompt[0], Message):
        prompt_length, is_text = sum(len(message.content) for message in group.prompt), True
    else:
        prompt_length, is_text = len(group.prompt), False
    lengths = [prompt_length + len(group.responses[index]) for index in indices]
    if is_text:
        return [length // _CHARACTERS_PER_TOKEN + 1 for length in lengths]
    return [length if length <= max_tokens else 0 for length in lengths]


def _slowest(rewards: Collection[RewardInFlight]) -> Timing:
    return Timing(
        tokenizer_ms=1000 * max((reward.tokenizer_s for reward in rewards), default=0.0),
        queue_ms=1000 * max((reward.queue_s for reward in rewards), default=0.0),
        model_ms=1000 * max((reward.model_s for reward in rewards), default=0.0),
    )
