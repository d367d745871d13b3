"""Scores groups of responses: `Scorer.score` is the whole way of a request, top to bottom.

A request is checked, looked up in the cache of this process and then in the shared one, and
admitted. What is neither cached nor in flight starts one `RewardInFlight` per response, which
passes the tokenizer pool and the batcher, or is awaited from another server that has claimed it,
and is decided by one future. A request that asks for a reward in flight joins it. The last request
that leaves a reward cancels it.

The module is longer than others, because it is the whole way of a request and its state.

The scorer knows no protocol: gRPC, commands and tests call the same method. One event loop owns all
of its state.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from kwise.engine.artifact.names import CHAT_TEMPLATE, TOKENIZER
from kwise.engine.artifact.read import Artifact
from kwise.engine.cache.reward_cache import reward_keys
from kwise.engine.cache.reward_caches import KnownRewards
from kwise.engine.cache.shared_cache import check_redis_installed
from kwise.engine.caches import new_reward_caches, reward_namespace
from kwise.engine.config import EngineConfig
from kwise.engine.load import effective_max_tokens, open_model
from kwise.engine.model.layouts.table import LAYOUTS
from kwise.engine.model.session import Session
from kwise.engine.reply import reward_of, scored_group
from kwise.engine.schedule.batcher import Batcher
from kwise.engine.schedule.costs import estimated_tokens
from kwise.engine.schedule.device_turns import Devices
from kwise.engine.schedule.elsewhere import ClaimedElsewhere
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.in_flight import RewardInFlight, TokenizerJob
from kwise.engine.schedule.policy import FairBatching
from kwise.engine.schedule.tokenizer_pool import TokenizerPool
from kwise.engine.slices import TOKEN_IDS_SLICE_ITEMS, in_slices
from kwise.engine.statistics.counters import Counters, counters_of
from kwise.engine.statistics.group_times import GroupTimes
from kwise.engine.statistics.state import EngineState
from kwise.engine.text.encoder import ConversationEncoder
from kwise.errors import Overloaded, Unavailable
from kwise.types import Group, ModelInfo, ScoredGroup


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
        name: str = "",
        devices: Devices | None = None,
    ) -> None:
        self.name = name or artifact.manifest.name
        self.artifact = artifact
        self.config = config
        self.counters = counters or Counters()
        self.runtime = sessions[0].runtime
        self.precision = sessions[0].precision
        self.max_tokens = effective_max_tokens(artifact, config)
        self._encoder = encoder
        self._sessions = sessions
        self._namespace = reward_namespace(
            artifact.manifest.fingerprint,
            config,
            precision=self.precision,
            runtime=self.runtime,
            max_tokens=self.max_tokens,
        )
        self._caches = new_reward_caches(
            config,
            self._namespace,
            self.counters,
            partial(reward_of, manifest=artifact.manifest, is_cached=True),
            artifact.manifest.num_members,
        )
        self._in_flight: dict[bytes, RewardInFlight] = {}
        self._num_running = 0
        self._is_idle = asyncio.Event()
        self._is_stopped = False
        self._batcher = Batcher(
            sessions,
            FairBatching(
                LAYOUTS[artifact.manifest.layout].new_batch,
                max_batch_tokens=config.effective_max_batch_tokens,
            ),
            max_queue_tokens=config.max_queue_tokens,
            counters=self.counters,
            turns=devices.turns(config.device) if devices else (),
        )
        self._admission = self._batcher.admission
        self._tokenizers = TokenizerPool(
            encoder.encode,
            num_threads=config.tokenizer_threads,
            submit=self._batcher.submit,
            release=self._admission.release,
        )
        self._elsewhere = self._caches.shared and ClaimedElsewhere(
            self._caches.shared,
            compute=self._compute,
            release=self._admission.release,
            counters=self.counters,
        )

    @classmethod
    def load(
        cls,
        path: Path,
        config: EngineConfig | None = None,
        counters: Counters | None = None,
        name: str = "",
        devices: Devices | None = None,
    ) -> "Scorer":
        """Load an artifact on each device and check its golden rewards there.

        Args:
            path: the artifact's directory.
            config: the engine's options; None for the defaults.
            counters: those of a scorer that this one takes over from, which go on counting.
            name: the model's name in replies; "" for the artifact's own.
            devices: the turns of the devices, if other models use them as well.

        Raises:
            ArtifactError: the artifact is damaged, or a golden reward comes out wrong on this
                runtime and device.
            ConfigError: a device is not available, or a limit does not suit the artifact.
        """
        config = config or EngineConfig()
        if config.shared_cache:
            check_redis_installed("--shared-cache")
        model = open_model(path, config)
        return cls(model.artifact, config, model.encoder, model.sessions, counters, name, devices)

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
        return f"{self.name} {manifest.fingerprint[:12]} ({how})"

    @property
    def has_chat_template(self) -> bool:
        """False if the model reads a prompt and a response as a pair of texts."""
        return CHAT_TEMPLATE in self.artifact.manifest.files

    @property
    def num_tokens_in_flight(self) -> int:
        """The tokens that wait or are being computed; an estimate for text that waits."""
        return sum(reward.cost for reward in self._in_flight.values())

    @property
    def state(self) -> EngineState:
        """The queue and the caches at this moment."""
        return EngineState(
            queue_tokens=self._admission.num_tokens,
            queue_sequences=self._batcher.num_waiting,
            max_queue_tokens=self.config.max_queue_tokens,
            rewards_in_flight=len(self._in_flight),
            reward_cache=self._caches.usage,
            prompt_caches=tuple(session.prompt_cache.usage for session in self._sessions),
        )

    @property
    def tokenizer_id(self) -> str:
        """The hash of the tokenizer."""
        return self.artifact.manifest.files[TOKENIZER].sha256

    @property
    def template_id(self) -> str:
        """The hash of the chat template and of the special tokens that it uses; "" without one."""
        manifest = self.artifact.manifest
        if not self.has_chat_template:
            return ""
        tokens = sorted(manifest.special_tokens.items())
        return f"{manifest.files[CHAT_TEMPLATE].sha256} {tokens}"

    def info(self, *, max_responses: int, max_pairs: int) -> ModelInfo:
        """Describe the model and the work that it has done; the limits are the server's."""
        manifest, config = self.artifact.manifest, self.config
        state = self.state
        return ModelInfo(
            model=self.name,
            fingerprint=manifest.fingerprint,
            layout=manifest.layout,
            precision=self.precision.value,
            runtime=self.runtime,
            max_tokens=self.max_tokens,
            max_batch_tokens=config.effective_max_batch_tokens,
            overlong=config.overlong.value,
            control_tokens=config.control_tokens.value,
            reward_mean=manifest.reward_mean,
            reward_std=manifest.reward_std,
            counters=counters_of(self.counters),
            max_responses=max_responses,
            max_pairs=max_pairs,
            queue_tokens=state.queue_tokens,
            queue_sequences=state.queue_sequences,
            max_queue_tokens=state.max_queue_tokens,
            num_devices=len(state.prompt_caches),
            num_members=manifest.num_members,
            member_means=tuple(member.mean for member in manifest.members or ()),
            member_stds=tuple(member.std for member in manifest.members or ()),
        )

    def start(self) -> None:
        """Begin to serve, in the running event loop."""
        self._batcher.start()
        self._tokenizers.start()
        if self._caches.shared:
            self._caches.shared.start()

    async def idle(self) -> None:
        """Wait until no group is being scored, including those that are requested meanwhile."""
        while self._num_running:
            self._is_idle.clear()
            await self._is_idle.wait()

    async def close(self) -> None:
        """Stop, and release the threads and the model."""
        await self.stop()

    async def stop(self) -> None:
        """Answer everything that waits or runs, and all later requests, with Unavailable."""
        self._is_stopped = True
        if self._elsewhere:
            await self._elsewhere.stop()
        await self._tokenizers.stop()
        await self._batcher.stop()
        for reward in self._in_flight.values():
            reward.fail(Unavailable.draining())
        if self._caches.shared:
            await self._caches.shared.close()

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
        with self.running(), times.success_or_failure():
            keys = await self._keys(group)
            flow = Flow(group.priority, group.client)
            known = await self._caches.look_up(keys, self._in_flight)
            times.looked_up()
            in_flight = self._start_or_join(group, keys, known, flow)
            try:
                if in_flight:
                    await asyncio.wait([reward.future for reward in in_flight.values()])
            finally:
                times.computed()
                self._leave(in_flight.values(), flow)
            scored = scored_group(
                keys,
                known.cached,
                in_flight,
                model=self.name,
                manifest=self.artifact.manifest,
                precision=self.precision.value,
                runtime=self.runtime,
            )
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

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a group as running, for `idle`."""
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._is_idle.set()

    def _start_or_join(
        self, group: Group, keys: Sequence[bytes], known: KnownRewards, flow: Flow
    ) -> dict[bytes, RewardInFlight]:
        """Start the rewards that are neither cached nor in flight, and join the others, by key.

        Admission comes first. A refused request leaves no trace, and a request that joins a reward
        never gets the refusal of the request that started it.
        """
        missing = {key: index for index, key in enumerate(keys) if key not in known.cached}
        new = {key: index for key, index in missing.items() if key not in self._in_flight}
        if self._is_stopped and missing:
            raise Unavailable.draining()
        job = self._admit(group, new) if new else None
        self.counters.cache_misses += len(missing)
        self.counters.joined += len(missing) - len(new)
        in_flight = {key: self._in_flight[key] for key in missing}
        for reward in in_flight.values():
            reward.waiters[flow] += 1
            if reward.waiters[flow] == 1:
                self._tokenizers.join(reward, flow)
                self._batcher.join(reward, flow)
        if job is not None:
            self._start(job, known.elsewhere)
        return in_flight

    def _start(self, job: TokenizerJob, elsewhere: Collection[bytes]) -> None:
        """Compute the rewards of a job, and await those that another server computes."""
        there = job.part(elsewhere)
        if self._elsewhere and there:
            self._elsewhere.add(there)
            here = job.part({reward.key for reward in job.rewards}.difference(elsewhere))
        else:
            here = job
        if here:
            self._compute(here)

    def _compute(self, job: TokenizerJob) -> None:
        """Compute the rewards of a job, and tell the other servers."""
        for reward in job.rewards:
            reward.future.add_done_callback(partial(self._count, reward))
            if self._caches.shared:
                reward.future.add_done_callback(partial(self._share, reward))
        self._tokenizers.add(job)

    def _count(self, reward: RewardInFlight, _: object) -> None:
        """Count a reward that was computed here in the statistics."""
        if not reward.is_computed or (sequence := reward.sequence) is None:
            return
        counters = self.counters
        value = self.artifact.manifest.value(reward.future.result())
        length = sequence.num_tokens - sequence.prompt_tokens
        counters.rewards.observe(value, length, reward.queue_s)
        counters.truncated_sequences += bool(sequence.dropped_tokens)
        counters.dropped_tokens += sequence.dropped_tokens
        counters.control_tokens += sequence.control_tokens

    def _share(self, reward: RewardInFlight, _: object) -> None:
        """Put a reward that was computed here into the shared cache, or give up its claim."""
        assert self._caches.shared is not None
        if reward.is_computed:
            self._caches.shared.put(reward.key, reward.stored)
        else:
            self._caches.shared.release(reward.key)

    def _admit(self, group: Group, new: Mapping[bytes, int]) -> TokenizerJob:
        """Admit the responses that `new` names by key and index, and put their rewards in flight.

        Raises:
            Overloaded: the queue is full.
        """
        costs = estimated_tokens(group, new.values(), self.max_tokens)
        try:
            self._admission.check(sum(costs), group.client)
        except Overloaded:
            self.counters.rejected_groups += 1
            if self._caches.shared:
                for key in new:
                    self._caches.shared.release(key)
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
                self._caches.put(reward.key, reward.stored)
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
