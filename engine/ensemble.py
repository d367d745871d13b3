"""An ensemble: models that score each group together, and whose disagreement is in the reply.

An RL run learns from it where its reward is unsure. The members are models of the same server, and
each may be asked by its own name as well. A member that is replaced is replaced in the ensemble.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256

from kwise.engine.artifact.members import ensemble_reward
from kwise.engine.cache_usage import CacheUsage
from kwise.engine.config import EngineConfig
from kwise.engine.served_model import ServedModel
from kwise.engine.statistics.counters import Counters, counters_of
from kwise.engine.statistics.group_times import GroupTimes
from kwise.engine.statistics.state import EngineState
from kwise.errors import InvalidRequest, KwiseError
from kwise.types import Group, ModelInfo, Reward, ScoredGroup, TemplatedText, Timing


class Ensemble:
    """A `ServedModel` whose reward is the mean of its members' rewards.

    Args:
        name: the name by which requests ask for it.
        member_names: the names of at least two models.
        find: returns the model that is served under a name at present.
    """

    def __init__(
        self, name: str, member_names: Sequence[str], find: Callable[[str], ServedModel]
    ) -> None:
        self.name = name
        self.member_names = tuple(member_names)
        self.counters = Counters()
        self._find = find
        self._num_running = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def members(self) -> list[ServedModel]:
        """The models that are served under the names of the members at present."""
        return [self._find(name) for name in self.member_names]

    @property
    def config(self) -> EngineConfig:
        """The options of the engines, which are those of the server."""
        return self.members[0].config

    @property
    def max_tokens(self) -> int:
        """The limit of a conversation, in tokens: the smallest of the members'."""
        return min(member.max_tokens for member in self.members)

    @property
    def description(self) -> str:
        """The name and the members, for the log."""
        return f"{self.name} (ensemble of {', '.join(self.member_names)})"

    @property
    def has_chat_template(self) -> bool:
        """False if one of the members reads a prompt and a response as a pair of texts."""
        return all(member.has_chat_template for member in self.members)

    @property
    def tokenizer_id(self) -> str:
        """The tokenizer, if all members have the same one; "" otherwise."""
        return _common(member.tokenizer_id for member in self.members)

    @property
    def template_id(self) -> str:
        """The chat template, if all members have the same one; "" otherwise."""
        return _common(member.template_id for member in self.members)

    @property
    def state(self) -> EngineState:
        """Nothing: what waits and what is cached belongs to the members."""
        return EngineState(
            queue_tokens=0,
            queue_sequences=0,
            max_queue_tokens=min(m.state.max_queue_tokens for m in self.members),
            rewards_in_flight=0,
            reward_cache=CacheUsage(entries=0, num_bytes=0, max_bytes=0),
            prompt_caches=(),
        )

    def info(self, *, max_responses: int, max_pairs: int) -> ModelInfo:
        """Describe the ensemble. The work that its members have done is in their descriptions."""
        infos = [m.info(max_responses=max_responses, max_pairs=max_pairs) for m in self.members]
        return ModelInfo(
            model=self.name,
            fingerprint=_fingerprint([info.fingerprint for info in infos]),
            layout=_joined(info.layout for info in infos),
            precision=_joined(info.precision for info in infos),
            runtime=_joined(info.runtime for info in infos),
            max_tokens=min(info.max_tokens for info in infos),
            max_batch_tokens=min(info.max_batch_tokens for info in infos),
            overlong=infos[0].overlong,
            control_tokens=infos[0].control_tokens,
            reward_mean=0.0,
            reward_std=1.0,
            counters=counters_of(self.counters),
            max_responses=max_responses,
            max_pairs=max_pairs,
            num_members=len(infos),
            member_means=tuple(info.reward_mean for info in infos),
            member_stds=tuple(info.reward_std for info in infos),
            queue_tokens=0,
            queue_sequences=0,
            max_queue_tokens=self.state.max_queue_tokens,
            num_devices=max(info.num_devices for info in infos),
        )

    def start(self) -> None:
        """Do nothing: the members are started by themselves."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a group as running, for `idle`."""
        self._num_running += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._is_idle.set()

    async def idle(self) -> None:
        """Wait until no group is being scored."""
        await self._is_idle.wait()

    async def stop(self) -> None:
        """Do nothing: the members answer what waits, and are stopped by themselves."""

    async def score(self, group: Group) -> ScoredGroup:
        """Return one reward or error per response, in order. All members are asked at once.

        A response that one member cannot score has that member's error in its place.

        Raises:
            InvalidRequest: the group is malformed, or the members would read its token ids or its
                templated text differently.
            KwiseError: as `Scorer.score` of a member.
        """
        members = self.members
        _check_alike(members, group)
        times = GroupTimes(self.counters.groups)
        with self.running(), times.success_or_failure():
            by_member = await _scores(members, group)
            times.computed()
            scored = _combined(self.name, by_member)
        is_cached = all(r.cached for r in scored.rewards if isinstance(r, Reward))
        times.replied(scored.timing, is_cached=is_cached, notes_stages=False)
        return scored


def _check_alike(members: Sequence[ServedModel], group: Group) -> None:
    """Check that the members read the group alike. Each renders messages with its own template.

    Raises:
        InvalidRequest: it is a text or token ids with the chat template applied, and their
            tokenizers or templates differ.
    """
    are_ids = bool(group.responses) and not isinstance(group.responses[0], str)
    if not are_ids and not isinstance(group.prompt, TemplatedText):
        return
    if len({member.tokenizer_id for member in members}) > 1:
        different = "tokenizers"
    elif len({member.template_id for member in members}) > 1:
        different = "chat templates"
    else:
        return
    form = "token ids" if are_ids else "a text with the chat template applied"
    raise InvalidRequest(
        "prompt",
        f"it is {form}, and the {different} of the ensemble's members differ; send messages "
        "instead",
    )


async def _scores(members: Sequence[ServedModel], group: Group) -> list[ScoredGroup]:
    """Return what each member says. If one fails, the others are cancelled.

    Raises:
        KwiseError: that of the first member, in their order, that fails.
    """
    with ExitStack() as running:
        for member in members:  # so that one that is replaced now answers before it is stopped
            running.enter_context(member.running())
        tasks = [asyncio.create_task(member.score(group)) for member in members]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = [task for task in tasks if task.done() and task.exception() is not None]
            return [task.result() for task in failed or tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _combined(name: str, scored: Sequence[ScoredGroup]) -> ScoredGroup:
    """Return the reply of an ensemble from those of its members."""
    by_response = zip(*(member.rewards for member in scored), strict=True)
    return ScoredGroup(
        rewards=tuple(_reward(rewards) for rewards in by_response),
        model=name,
        fingerprint=_fingerprint([member.fingerprint for member in scored]),
        precision=_joined(member.precision for member in scored),
        runtime=_joined(member.runtime for member in scored),
        timing=Timing(
            tokenizer_ms=max(member.timing.tokenizer_ms for member in scored),
            queue_ms=max(member.timing.queue_ms for member in scored),
            model_ms=max(member.timing.model_ms for member in scored),
        ),
    )


def _reward(rewards: Sequence[Reward | KwiseError]) -> Reward | KwiseError:
    """Return the reward of one response from those of the members, or the first error."""
    scored: list[Reward] = []
    for reward in rewards:
        if isinstance(reward, KwiseError):
            return reward
        scored.append(reward)
    return ensemble_reward(
        values=[reward.value for reward in scored],
        raw=[reward.raw for reward in scored],
        tokens=max(reward.tokens for reward in scored),
        dropped_tokens=max(reward.dropped_tokens for reward in scored),
        control_tokens=max(reward.control_tokens for reward in scored),
        cached=all(reward.cached for reward in scored),
    )


def _fingerprint(fingerprints: Sequence[str]) -> str:
    """Return the identity of an ensemble: a SHA-256 over its members', in their order."""
    return sha256("\n".join(("kwise ensemble", *fingerprints)).encode()).hexdigest()


def _joined(values: Iterable[str]) -> str:
    """Return the different values, in order, with a comma between them."""
    return ", ".join(dict.fromkeys(values))


def _common(values: Iterable[str]) -> str:
    """Return the value that all have; "" if they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else ""
