"""Score the samples of a request of another protocol.

The samples of a request may have several prompts, while a group has one. Samples are grouped by
prompt, the groups are scored at the same time, and the rewards come back in the order of the
request, all from one model. These protocols cannot report errors of single items, so the first
sample that cannot be scored fails the call with an error that names its field.

The groups of one request must not refuse each other for a lack of room in the queue. A group that
is refused waits until another group of the request is done. If none runs, the call is refused, or
held for `hold_s` seconds: some clients end their run when they are refused.
"""

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kwise.engine.served_model import ServedModel
from kwise.engine.server.call import Call
from kwise.engine.server.samples.sample import Sample
from kwise.engine.slices import PAUSE_S, in_slices
from kwise.errors import InvalidRequest, KwiseError, ModelFailed, Overloaded
from kwise.types import Group, Reward, ScoredGroup, Timing

# The longest time that a call is held while the queue has no room, for clients that do not try
# again after a refusal. OpenRLHF gives up on a call after 180 s.
HOLD_S = 170.0

# The number of groups of one request that are scored at the same time, and the number that are
# started in one slice.
_MAX_GROUPS_AT_ONCE = 256
_GROUPS_PER_SLICE = 32

_PATH = re.compile(r"(?:prompt|responses\[\d+\])(?P<messages>\.messages(?P<rest>.*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSamples:
    """The rewards of the samples of a request.

    Attributes:
        rewards: one per sample, in order.
        model: the name of the model.
        fingerprint: the identity of the model, a SHA-256 in hex.
        timing: the longest time of each stage.
    """

    rewards: tuple[Reward, ...]
    model: str
    fingerprint: str
    timing: Timing

    @property
    def num_tokens(self) -> int:
        """The tokens of all conversations."""
        return sum(reward.tokens for reward in self.rewards)


def check_size(call: Call, field: str, number: int) -> None:
    """Check the number of items in a field. Handlers call this before they convert a body.

    Raises:
        InvalidRequest: there are more than the server allows.
    """
    if number > (limit := call.service.limits.max_responses):
        problem = f"there are {number}; the limit is {limit} (--max-responses)"
        raise InvalidRequest(field, problem)


async def score_samples(
    call: Call,
    samples: Sequence[Sample],
    *,
    model: str | None = None,
    hold_s: float = 0.0,
) -> ScoredSamples:
    """Return the rewards of the samples, in order.

    Args:
        call: the service and the client of the request.
        samples: at least one.
        model: the name of the model in the request's body; None or "" if it names none.
        hold_s: the longest wait for room in the queue before the call is refused, in seconds.

    Raises:
        InvalidRequest: a sample cannot be scored. The error names its field.
        ModelFailed: the model failed on a sample.
        KwiseError: as `RewardService.score`.
    """
    name = call.model_named(model)
    _check_token_ids(call.service.model(name), samples)
    indices_by_group = await _indices_by_prompt(samples)
    groups = [
        Group(
            prompt=samples[indices[0]].prompt,
            responses=_responses(samples, indices),
            client=call.client,
        )
        for indices in indices_by_group
    ]
    queue = _Groups(call, groups, name, hold_s)
    outcomes = await queue.score()
    while len({o.fingerprint for o in outcomes if isinstance(o, ScoredGroup)}) > 1:
        # The model was replaced in the meantime. The new one has some of the rewards already.
        outcomes = await queue.score()
    return _merged(samples, indices_by_group, outcomes)


def _check_token_ids(model: ServedModel, samples: Sequence[Sample]) -> None:
    first = samples[0]
    if first.is_split or isinstance(first.response, str) or model.has_chat_template:
        return
    raise InvalidRequest(
        first.prompt_field,
        "this model reads a prompt and a response as a pair of texts, and the token ids do not say "
        "where the response starts; give the two texts instead, for example to /score or /rerank",
    )


async def _indices_by_prompt(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the indices of the samples of each distinct prompt, in order of appearance."""
    by_prompt: dict[Any, list[int]] = {}
    prompt: Any = None
    indices: list[int] = []
    async for part in in_slices(enumerate(samples)):
        for index, sample in part:
            if sample.prompt is not prompt:  # hashing many token ids takes long
                prompt = sample.prompt
                indices = by_prompt.setdefault(prompt, [])
            indices.append(index)
    return list(by_prompt.values())


def _responses(samples: Sequence[Sample], indices: Sequence[int]) -> Any:
    return tuple(samples[index].response for index in indices)


class _Groups:
    """The groups of one request, which are scored at the same time."""

    def __init__(self, call: Call, groups: Sequence[Group], model: str, hold_s: float) -> None:
        self._call = call
        self._groups = groups
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._give_up_at = self._loop.time() + hold_s

    async def score(self) -> list[ScoredGroup | KwiseError]:
        """Return the rewards of each group, or the error of its samples."""
        if len(self._groups) == 1:
            return [await self._only_group(self._groups[0])]
        outcomes: dict[int, ScoredGroup | KwiseError] = {}
        waiting = deque(range(len(self._groups)))
        running: dict[asyncio.Task[ScoredGroup | KwiseError], int] = {}
        max_running = _MAX_GROUPS_AT_ONCE
        try:
            while waiting or running:
                while waiting and len(running) < max_running:
                    index = waiting.popleft()
                    running[asyncio.create_task(self._score(self._groups[index]))] = index
                    if not len(running) % _GROUPS_PER_SLICE:
                        await asyncio.sleep(PAUSE_S)
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = running.pop(task)
                    try:
                        outcomes[index] = task.result()
                        max_running = min(max_running + 1, _MAX_GROUPS_AT_ONCE)
                    except Overloaded as error:
                        waiting.append(index)
                        max_running = max(1, len(running))
                        if not running:
                            await self._wait_for_room(error)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return [outcomes[index] for index in range(len(self._groups))]

    async def _only_group(self, group: Group) -> ScoredGroup | KwiseError:
        while True:
            try:
                return await self._score(group)
            except Overloaded as error:
                await self._wait_for_room(error)

    async def _score(self, group: Group) -> ScoredGroup | KwiseError:
        try:
            return await self._call.service.score(group, self._model)
        except (InvalidRequest, ModelFailed) as error:  # the other samples may still be scored
            return error

    async def _wait_for_room(self, error: Overloaded) -> None:
        """Wait as long as the refusal says, or until the server drains.

        Raises:
            Overloaded: the call has been held for as long as it may be.
        """
        if self._loop.time() + error.retry_after_s > self._give_up_at:
            raise error
        with suppress(TimeoutError):
            await asyncio.wait_for(self._call.service.draining.wait(), error.retry_after_s)


def _merged(
    samples: Sequence[Sample],
    indices_by_group: Sequence[Sequence[int]],
    outcomes: Sequence[ScoredGroup | KwiseError],
) -> ScoredSamples:
    """Return the rewards in the order of the samples, or raise the error of the first bad one."""
    rewards: dict[int, Reward] = {}
    errors: dict[int, KwiseError] = {}
    groups: list[ScoredGroup] = []
    for indices, outcome in zip(indices_by_group, outcomes, strict=True):
        if isinstance(outcome, KwiseError):
            errors.update(dict.fromkeys(indices, outcome))
            continue
        groups.append(outcome)
        for index, reward in zip(indices, outcome.rewards, strict=True):
            if isinstance(reward, KwiseError):
                errors[index] = reward
            else:
                rewards[index] = reward
    if errors:
        raise _first_error(samples, errors)
    return ScoredSamples(
        rewards=tuple(rewards[index] for index in range(len(samples))),
        model=groups[0].model,
        fingerprint=groups[0].fingerprint,
        timing=Timing(
            tokenizer_ms=max(group.timing.tokenizer_ms for group in groups),
            queue_ms=max(group.timing.queue_ms for group in groups),
            model_ms=max(group.timing.model_ms for group in groups),
        ),
    )


def _first_error(samples: Sequence[Sample], errors: dict[int, KwiseError]) -> KwiseError:
    """Return the error of the first sample that has one. It names the caller's field."""
    index = min(errors)
    error, sample = errors[index], samples[index]
    others = ""
    if len(errors) > 1:
        others = f" ({len(errors)} of {len(samples)} items cannot be scored; this is the first)"
    located: KwiseError
    if isinstance(error, InvalidRequest):
        located = InvalidRequest(
            _field(error, sample), error.problem + others, is_quoting=error.is_quoting
        )
    else:
        located = ModelFailed(field=sample.response_field)
    located.response = index
    return located


def _field(error: InvalidRequest, sample: Sample) -> str:
    """Return the caller's name of the field that an error of the service names."""
    if not error.field.startswith("prompt"):
        return sample.response_field
    match = _PATH.match(error.field)
    return sample.prompt_field + (match["rest"] or "" if match else "")
