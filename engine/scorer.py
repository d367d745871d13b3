"""A group in, rewards out. `Scorer.score` reads as a request goes: cache, join, tokenise, queue, model, cache, reply.

Knows no protocol: gRPC, shell commands and tests call the same method. One event loop owns all of its state.
"""

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from tokenizers import Tokenizer

from kwise.engine.artifact import Artifact, read_artifact
from kwise.engine.batcher import Batcher, Counters
from kwise.engine.cache import RewardCache, StoredReward, reward_keys
from kwise.engine.config import EngineConfig
from kwise.engine.conversation import ConversationEncoder, EncodedSequence, EncoderLimits
from kwise.engine.errors import ArtifactError, ConfigError, InvalidRequest, KwiseError
from kwise.engine.queue import Finished, WorkQueue
from kwise.engine.session import OnnxSession, Session
from kwise.engine.types import Group, Reward, ScoredGroup, Timing


@dataclass(slots=True, kw_only=True, eq=False)
class _Pending:
    """A reward being computed, and how many requests wait for it; the last to leave cancels it."""

    future: "asyncio.Future[tuple[StoredReward | InvalidRequest, Timing]]"
    waiters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lookup:
    """What is known of a group before any work: rewards in the cache, and what is or must be computed."""

    cached: dict[bytes, StoredReward] = field(default_factory=dict)
    awaited: dict[bytes, _Pending] = field(default_factory=dict)


class Scorer:
    """Scores groups with one artifact. `async with Scorer.load(path, config) as scorer: await scorer.score(group)`."""

    def __init__(
        self, artifact: Artifact, config: EngineConfig, encoder: ConversationEncoder, sessions: Sequence[Session]
    ) -> None:
        self.artifact = artifact
        self.config = config
        self.counters = Counters()
        self.runtime = sessions[0].runtime
        self.max_tokens = effective_max_tokens(artifact, config)
        self._encoder = encoder
        self._sessions = sessions
        self._cache = RewardCache(config.cache_bytes)
        self._namespace = "|".join(
            (
                artifact.manifest.fingerprint,
                self.runtime,
                str(self.max_tokens),
                config.overlong.value,
                config.control_tokens.value,
            )
        ).encode()
        self._pending: dict[bytes, _Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(config.tokenizer_threads, thread_name_prefix="kwise-tokenizer")
        self._batcher: Batcher

    @classmethod
    def load(cls, path: Path, config: EngineConfig | None = None) -> "Scorer":
        """Read and verify the artifact, load it on the device, and score its golden conversations there.

        Raises:
            ArtifactError: damaged, or a golden reward comes out wrong on this runtime and device.
            ConfigError: the device is not to be had, or a limit does not suit the artifact.
        """
        config = config or EngineConfig()
        artifact = read_artifact(path)
        session = OnnxSession(artifact, threads=config.runtime_threads, device=config.device)
        encoder = new_encoder(artifact, config)
        check_golden(artifact, new_encoder(artifact, EngineConfig()), session)
        return cls(artifact, config, encoder, [session])

    async def __aenter__(self) -> "Scorer":
        manifest = self.artifact.manifest
        queue = WorkQueue(layout=manifest.layout, max_batch_tokens=self.config.max_batch_tokens)
        self._batcher = Batcher(self._sessions, queue, max_queue_tokens=self.config.max_queue_tokens, counters=self.counters)
        self._batcher.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._batcher.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown()

    async def score(self, group: Group) -> ScoredGroup:
        """One outcome per response, in order.

        Cancelling the call drops what nobody else waits for.

        Raises:
            InvalidRequest: the group as a whole is malformed.
            Overloaded: the queue is full.
            ModelFailed: the runtime failed on this group.
        """
        self._encoder.check(group)
        keys = reward_keys(self._namespace, group)
        lookup = self._look_up(keys, group)
        try:
            computed = {key: await asyncio.shield(pending.future) for key, pending in lookup.awaited.items()}
        finally:
            self._leave(lookup.awaited)
        rewards: list[Reward | KwiseError] = []
        for index, key in enumerate(keys):
            if (stored := lookup.cached.get(key)) is not None:
                rewards.append(self._reward(stored, cached=True))
                continue
            outcome = computed[key][0]
            if isinstance(outcome, InvalidRequest):
                rewards.append(_at_index(outcome, index))
            else:
                rewards.append(self._reward(outcome, cached=keys.index(key) < index))
        manifest = self.artifact.manifest
        return ScoredGroup(
            rewards=tuple(rewards),
            model=manifest.name,
            fingerprint=manifest.fingerprint,
            timing=_slowest([timing for _, timing in computed.values()]),
        )

    def _look_up(self, keys: Sequence[bytes], group: Group) -> _Lookup:
        """Rewards that are cached, being computed, or must be; computing the last starts here."""
        lookup = _Lookup()
        new: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key in lookup.cached or key in lookup.awaited:
                continue
            if (stored := self._cache.get(key)) is not None:
                lookup.cached[key] = stored
                continue
            if key in self._pending:
                self.counters.joined += 1
            else:
                self._pending[key] = _Pending(future=asyncio.get_running_loop().create_future())
                new[key] = index
            lookup.awaited[key] = self._pending[key]
            self._pending[key].waiters += 1
        self.counters.cache_hits += len(lookup.cached)
        if new:
            task = asyncio.create_task(self._compute(group, new), name="kwise group")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return lookup

    def _leave(self, awaited: dict[bytes, _Pending]) -> None:
        for key, pending in awaited.items():
            pending.waiters -= 1
            if pending.waiters == 0 and not pending.future.done():
                pending.future.cancel()
                if self._pending.get(key) is pending:
                    del self._pending[key]

    async def _compute(self, group: Group, new: dict[bytes, int]) -> None:
        """Compute the rewards of the responses that `new` names by index, and answer all who wait for them."""
        waiting = {key: self._pending[key] for key in new}
        try:
            self._batcher.check_room()
            started_s = perf_counter()
            part = Group(
                prompt=group.prompt,
                responses=tuple(group.responses[index] for index in new.values()),  # type: ignore[arg-type]
                priority=group.priority,
            )
            encode = functools.partial(self._encoder.encode, part)
            outcomes = await asyncio.get_running_loop().run_in_executor(self._threads, encode)
            tokenizer_ms = (perf_counter() - started_s) * 1000
            scorable: dict[bytes, EncodedSequence] = {}
            for key, outcome in zip(new, outcomes, strict=True):
                if isinstance(outcome, InvalidRequest):
                    self._resolve(key, waiting[key], outcome, Timing(tokenizer_ms=tokenizer_ms))
                elif not waiting[key].future.done():
                    scorable[key] = outcome
            futures = self._batcher.submit(list(scorable.values()), group.priority)
            for (key, sequence), future in zip(scorable.items(), futures, strict=True):
                pending = waiting[key]
                pending.future.add_done_callback(functools.partial(_cancel_with, future))
                future.add_done_callback(functools.partial(self._finish, key, pending, sequence, tokenizer_ms))
        except KwiseError as error:
            for key, pending in waiting.items():
                self._fail(key, pending, error)
        except BaseException as error:
            for key, pending in waiting.items():
                self._fail(key, pending, error if isinstance(error, Exception) else asyncio.CancelledError())
            raise

    def _finish(
        self,
        key: bytes,
        pending: _Pending,
        sequence: EncodedSequence,
        tokenizer_ms: float,
        future: "asyncio.Future[Finished]",
    ) -> None:
        """The batcher is done with a sequence."""
        if future.cancelled():
            self._fail(key, pending, asyncio.CancelledError())
        elif (error := future.exception()) is not None:
            self._fail(key, pending, error)
        else:
            finished = future.result()
            stored = StoredReward(
                raw=finished.raw,
                tokens=sequence.num_tokens,
                dropped_tokens=sequence.dropped_tokens,
                control_tokens=sequence.control_tokens,
            )
            self._cache.put(key, stored)
            timing = Timing(tokenizer_ms=tokenizer_ms, queue_ms=finished.queue_s * 1000, model_ms=finished.model_s * 1000)
            self._resolve(key, pending, stored, timing)

    def _resolve(self, key: bytes, pending: _Pending, outcome: StoredReward | InvalidRequest, timing: Timing) -> None:
        self._forget(key, pending)
        if not pending.future.done():
            pending.future.set_result((outcome, timing))

    def _fail(self, key: bytes, pending: _Pending, error: BaseException) -> None:
        self._forget(key, pending)
        if pending.future.done():
            return
        if isinstance(error, asyncio.CancelledError):
            pending.future.cancel()
        else:
            pending.future.set_exception(error)
            pending.future.exception()  # every waiter may have left: then nobody retrieves it, which is not a fault

    def _forget(self, key: bytes, pending: _Pending) -> None:
        if self._pending.get(key) is pending:
            del self._pending[key]

    def _reward(self, stored: StoredReward, *, cached: bool) -> Reward:
        manifest = self.artifact.manifest
        return Reward(
            value=(stored.raw - manifest.reward_mean) / manifest.reward_std,
            raw=stored.raw,
            tokens=stored.tokens,
            dropped_tokens=stored.dropped_tokens,
            control_tokens=stored.control_tokens,
            cached=cached,
        )


def effective_max_tokens(artifact: Artifact, config: EngineConfig) -> int:
    """The longest conversation in tokens: the option where given, else the model's limit.

    Raises:
        ConfigError: the option exceeds the model's limit.
    """
    limit = artifact.manifest.max_tokens
    if config.max_tokens > limit:
        raise ConfigError(f"--max-tokens is {config.max_tokens}; it must be at most {limit}, the model's own limit")
    return config.max_tokens or limit


def new_encoder(artifact: Artifact, config: EngineConfig) -> ConversationEncoder:
    """The artifact's tokenizer and template with the config's limits."""
    manifest = artifact.manifest
    return ConversationEncoder(
        Tokenizer.from_file(str(artifact.tokenizer_path)),
        template=artifact.chat_template,
        special_tokens=manifest.special_tokens,
        limits=EncoderLimits(
            max_tokens=effective_max_tokens(artifact, config),
            vocab_size=manifest.vocab_size,
            overlong=config.overlong,
            control_tokens=config.control_tokens,
        ),
        trailing_pad_id=manifest.pad_token_id if manifest.causal else None,
    )


def check_golden(artifact: Artifact, encoder: ConversationEncoder, session: Session) -> None:
    """Score the artifact's golden conversations, each by itself, as this server would.

    Raises:
        ArtifactError: a reward is further from its golden value than the manifest tolerates (a lost head, a wrong
            provider or a wrong pooling shows here, not in a ruined RL run).
    """
    for number, golden in enumerate(artifact.golden, start=1):
        (encoded,) = encoder.encode(Group(prompt=golden.prompt, responses=(golden.response,)))
        if isinstance(encoded, InvalidRequest):
            raise ArtifactError(f"{artifact.path}/golden.jsonl:{number}: {encoded}")
        (raw,) = session.run([encoded]).rewards
        difference = abs(float(raw) - golden.reward)
        if not difference <= artifact.manifest.golden_tolerance:  # also where it is not a number
            raise ArtifactError(
                f"{artifact.path}/golden.jsonl:{number}: {session.runtime} gives {raw:.6f} where the checkpoint gave "
                f"{golden.reward:.6f}; the tolerance is {artifact.manifest.golden_tolerance}"
            )


def _cancel_with(future: "asyncio.Future[Finished]", pending: "asyncio.Future[object]") -> None:
    if pending.cancelled():
        future.cancel()


def _at_index(error: InvalidRequest, index: int) -> InvalidRequest:
    """The same error naming the response's place in this request, which may not be where it was first met."""
    _, _, rest = error.field.partition("]")
    return InvalidRequest(f"responses[{index}]{rest}", error.problem)


def _slowest(timings: Sequence[Timing]) -> Timing:
    return Timing(
        tokenizer_ms=max((timing.tokenizer_ms for timing in timings), default=0.0),
        queue_ms=max((timing.queue_ms for timing in timings), default=0.0),
        model_ms=max((timing.model_ms for timing in timings), default=0.0),
    )
