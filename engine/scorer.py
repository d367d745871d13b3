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

from kwise.engine.artifact import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import check_golden, effective_max_tokens, load_tokenizer, new_encoder
from kwise.engine.model.devices import parse_devices
from kwise.engine.model.select import choose_for
from kwise.engine.model.session import GraphSession, Session
from kwise.engine.reward_cache import RewardCache, StoredReward, reward_keys
from kwise.engine.schedule.batcher import Batcher, Counters
from kwise.engine.schedule.queue import Finished, WorkQueue
from kwise.engine.schedule.slots import Slots, Ticket
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.errors import InvalidRequest, KwiseError, ModelFailed, Unavailable
from kwise.types import Group, Message, Priority, Reward, ScoredGroup, Timing

# English has about four characters a token. Only admission counts with it, before the tokens are known.
_CHARACTERS_PER_TOKEN = 4


@dataclass(slots=True, kw_only=True, eq=False)
class _Pending:
    """A reward being computed, and how many requests wait for it; the last to leave cancels it.

    priority, client: whose turn it takes, the best of those that wait. ticket: its group's place before the tokenizer. work: its
    place in the batcher, once it is there.
    """

    future: "asyncio.Future[tuple[StoredReward | InvalidRequest, Timing]]"
    priority: Priority
    client: str
    ticket: Ticket
    work: "asyncio.Future[Finished] | None" = None
    waiters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lookup:
    """What is known of a group before any work: rewards in the cache, and what is or must be computed."""

    cached: dict[bytes, StoredReward] = field(default_factory=dict)
    awaited: dict[bytes, _Pending] = field(default_factory=dict)


class Scorer:
    """Scores groups with one artifact. `async with Scorer.load(path, config) as scorer: await scorer.score(group)`."""

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
        self._sessions = sessions
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
        self._pending: dict[bytes, _Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(
            config.tokenizer_threads, thread_name_prefix="kwise-tokenizer"
        )
        self._tokenizer_slots = Slots(config.tokenizer_threads)
        self._batcher: Batcher

    @classmethod
    def load(
        cls, path: Path, config: EngineConfig | None = None, counters: Counters | None = None
    ) -> "Scorer":
        """Read and verify the artifact, load it on each device, and score its golden conversations there. `counters`: those of
        the scorer that this one takes over from.

        Raises:
            ArtifactError: damaged, or a golden reward comes out wrong on this runtime and device.
            ConfigError: the device is not to be had, or a limit does not suit the artifact.
        """
        config = config or EngineConfig()
        devices = parse_devices(config.device)
        artifact = read_artifact(path)
        precision, runtime = choose_for(config, artifact.manifest.held)
        sessions = [
            GraphSession(
                artifact,
                runtime=runtime,
                precision=precision,
                threads=config.runtime_threads,
                device=device.name,
                device_memory_bytes=config.device_memory_bytes,
                prompt_cache_bytes=config.prompt_cache_bytes,
            )
            for device in devices
        ]
        tokenizer = load_tokenizer(artifact)
        encoder = new_encoder(artifact, config, tokenizer)
        golden_encoder = new_encoder(artifact, EngineConfig(), tokenizer)
        for session in sessions:
            check_golden(artifact, golden_encoder, session)
        return cls(artifact, config, encoder, sessions, counters)

    async def __aenter__(self) -> "Scorer":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def description(self) -> str:
        """What is served, for the log."""
        manifest = self.artifact.manifest
        return f"{manifest.name} {manifest.fingerprint[:12]} ({manifest.layout} layout, {self.precision.value}, {self.runtime})"

    def start(self) -> None:
        """Begin to serve, in the running event loop."""
        manifest = self.artifact.manifest
        queue = WorkQueue(layout=manifest.layout, max_batch_tokens=self.config.max_batch_tokens)
        self._batcher = Batcher(
            self._sessions,
            queue,
            max_queue_tokens=self.config.max_queue_tokens,
            counters=self.counters,
        )
        self._batcher.start()

    async def idle(self) -> None:
        """Until nothing is being computed. What is asked for meanwhile is waited for too."""
        while self._pending:
            await asyncio.wait([pending.future for pending in self._pending.values()])

    async def close(self) -> None:
        """Stop, and let go of threads and model."""
        await self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def stop(self) -> None:
        """Answer all that waits, and whatever comes later, with Unavailable."""
        await self._batcher.stop()
        for key, pending in list(self._pending.items()):
            self._fail(key, pending, Unavailable.leaving())

    async def score(self, group: Group) -> ScoredGroup:
        """One outcome per response, in order; what is wrong with one response is in its place.

        Cancelling the call drops what nobody else waits for.

        Raises:
            InvalidRequest: the group as a whole is malformed, or none of its responses leaves its prompt scorable.
            Overloaded: the queue is full.
            Unavailable: the scorer stops.
            ModelFailed: the runtime failed on every response.
        """
        self._encoder.check(group)
        keys = reward_keys(self._namespace, group)
        lookup = self._look_up(keys, group)
        try:
            computed = {key: await _outcome(pending) for key, pending in lookup.awaited.items()}
        finally:
            self._leave(lookup.awaited)
        rewards: list[Reward | KwiseError] = []
        for index, key in enumerate(keys):
            if (stored := lookup.cached.get(key)) is not None:
                rewards.append(self._reward(stored, cached=True))
                continue
            outcome = computed[key][0]
            if isinstance(outcome, KwiseError):
                rewards.append(_at_index(outcome, index))
            else:
                rewards.append(self._reward(outcome, cached=keys.index(key) < index))
        _raise_for_group(rewards)
        manifest = self.artifact.manifest
        return ScoredGroup(
            rewards=tuple(rewards),
            model=manifest.name,
            fingerprint=manifest.fingerprint,
            precision=self.precision.value,
            runtime=self.runtime,
            timing=_slowest([timing for _, timing in computed.values()]),
        )

    def _look_up(self, keys: Sequence[bytes], group: Group) -> _Lookup:
        """Rewards that are cached, being computed, or must be; computing the last starts here."""
        lookup = _Lookup()
        ticket: Ticket | None = None  # one for all of the group that must be computed
        new: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key in lookup.cached or key in lookup.awaited:
                continue
            if (stored := self._cache.get(key)) is not None:
                lookup.cached[key] = stored
                continue
            if (pending := self._pending.get(key)) is not None:
                self.counters.joined += 1
                self._hasten(pending, group)
            else:
                ticket = ticket or Ticket(priority=group.priority, client=group.client)
                future = asyncio.get_running_loop().create_future()
                self._pending[key] = _Pending(
                    future=future, priority=group.priority, client=group.client, ticket=ticket
                )
                new[key] = index
            lookup.awaited[key] = self._pending[key]
            self._pending[key].waiters += 1
        self.counters.cache_hits += len(lookup.cached)
        if ticket is not None:
            task = asyncio.create_task(self._compute(group, new, ticket), name="kwise group")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return lookup

    def _hasten(self, pending: _Pending, group: Group) -> None:
        """Who joins must not wait behind a bulk turn, or behind all that another client has in line, for that one asked first."""
        if (pending.priority, group.priority) != (Priority.INTERACTIVE, Priority.BULK):
            pending.priority, pending.client = group.priority, group.client
            if pending.work is None:
                self._tokenizer_slots.hasten(pending.ticket, pending.priority, pending.client)
            else:
                self._batcher.hasten(pending.work, pending.priority, pending.client)

    def _leave(self, awaited: dict[bytes, _Pending]) -> None:
        for key, pending in awaited.items():
            pending.waiters -= 1
            if pending.waiters == 0 and not pending.future.done():
                pending.future.cancel()
                if self._pending.get(key) is pending:
                    del self._pending[key]

    async def _compute(self, group: Group, new: dict[bytes, int], ticket: Ticket) -> None:
        """Compute the rewards of the responses that `new` names by index, and answer all who wait for them."""
        waiting = {key: self._pending[key] for key in new}
        part = Group(
            prompt=group.prompt,
            responses=tuple(group.responses[index] for index in new.values()),  # type: ignore[arg-type]
            priority=group.priority,
            client=group.client,
        )
        try:
            ticket.cost = estimated = _estimated_tokens(part, self.max_tokens)
            started_s = perf_counter()
            with self._batcher.reserve(estimated, group.client):
                async with self._tokenizer_slots.turn(ticket):
                    outcomes = await self._encode(part, list(waiting.values()))
            tokenizer_ms = (perf_counter() - started_s) * 1000
            scorable: dict[bytes, EncodedSequence] = {}
            for key, outcome in zip(new, outcomes, strict=True):
                if isinstance(outcome, InvalidRequest):
                    self._resolve(key, waiting[key], outcome, Timing(tokenizer_ms=tokenizer_ms))
                elif not waiting[key].future.done():
                    scorable[key] = outcome
            self._submit(scorable, waiting, group, tokenizer_ms)
        except asyncio.CancelledError:
            for key, pending in waiting.items():
                self._fail(key, pending, asyncio.CancelledError())
            raise
        except Exception as error:  # noqa: BLE001 - it is raised again in every request that waits
            for key, pending in waiting.items():
                self._fail(key, pending, error)

    async def _encode(
        self, group: Group, waiting: Sequence[_Pending]
    ) -> list[EncodedSequence | InvalidRequest]:
        """`ConversationEncoder.encode` in a tokenizer thread, unless everybody left before it was the group's turn."""

        def encode() -> list[EncodedSequence | InvalidRequest]:
            if all(pending.future.done() for pending in waiting):
                raise Unavailable("nobody waits for this group any more")
            try:
                return self._encoder.encode(group)
            except Exception:
                raise
            except (
                BaseException
            ) as panic:  # tokenizers' panics are no Exceptions, and nobody expects less
                raise RuntimeError("the tokenizer panicked") from panic

        return await asyncio.get_running_loop().run_in_executor(self._threads, encode)

    def _submit(
        self,
        scorable: dict[bytes, EncodedSequence],
        waiting: dict[bytes, _Pending],
        group: Group,
        tokenizer_ms: float,
    ) -> None:
        """Hand a group's sequences to the batcher, each with the turn of the most urgent request that waits for it."""
        futures = self._batcher.submit(list(scorable.values()), group.priority, group.client)
        for (key, sequence), future in zip(scorable.items(), futures, strict=True):
            pending = waiting[key]
            pending.work = future
            pending.future.add_done_callback(functools.partial(_cancel_with, future))
            future.add_done_callback(
                functools.partial(self._finish, key, pending, sequence, tokenizer_ms)
            )
            if (pending.priority, pending.client) != (group.priority, group.client):
                self._batcher.hasten(future, pending.priority, pending.client)

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
            timing = Timing(
                tokenizer_ms=tokenizer_ms,
                queue_ms=finished.queue_s * 1000,
                model_ms=finished.model_s * 1000,
            )
            self._resolve(key, pending, stored, timing)

    def _resolve(
        self, key: bytes, pending: _Pending, outcome: StoredReward | InvalidRequest, timing: Timing
    ) -> None:
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


def _cancel_with(future: "asyncio.Future[Finished]", pending: "asyncio.Future[object]") -> None:
    if pending.cancelled():
        future.cancel()


async def _outcome(pending: _Pending) -> "tuple[StoredReward | KwiseError, Timing]":
    """What came of one response. Errors that are the whole group's, or the server's, are raised."""
    try:
        return await asyncio.shield(pending.future)
    except (InvalidRequest, ModelFailed) as error:
        return error, Timing()


def _raise_for_group(rewards: Sequence[Reward | KwiseError]) -> None:
    """Where nothing was scored and no response is at fault by itself, the call fails instead of saying so K times."""
    errors = [reward for reward in rewards if isinstance(reward, KwiseError)]
    if len(errors) == len(rewards) and not any(_is_of_response(error) for error in errors):
        raise errors[0]


def _is_of_response(error: KwiseError) -> bool:
    return isinstance(error, InvalidRequest) and error.response is not None


def _at_index(error: KwiseError, index: int) -> KwiseError:
    """The same error naming the response's place in this request, which may not be where it was first met."""
    return (
        error.at(index)
        if isinstance(error, InvalidRequest) and error.response is not None
        else error
    )


def _estimated_tokens(group: Group, max_tokens: int) -> int:
    """About how many tokens the group's conversations have, from lengths alone; token ids over the limit cost nothing."""
    if isinstance(group.prompt[0], Message):
        prompt_length = sum(len(message.content) for message in group.prompt)
        return (
            sum(prompt_length + len(response) for response in group.responses)
            // _CHARACTERS_PER_TOKEN
            + 1
        )
    lengths = [len(group.prompt) + len(response) for response in group.responses]
    return sum(length for length in lengths if length <= max_tokens)


def _slowest(timings: Sequence[Timing]) -> Timing:
    return Timing(
        tokenizer_ms=max((timing.tokenizer_ms for timing in timings), default=0.0),
        queue_ms=max((timing.queue_ms for timing in timings), default=0.0),
        model_ms=max((timing.model_ms for timing in timings), default=0.0),
    )
