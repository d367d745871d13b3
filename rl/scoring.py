"""Score the prompts and responses of a batch, in the order in which an RL library gives them.

A library gives one prompt per response. Equal prompts are grouped, wherever they are in the batch.
Each distinct prompt is one request, so that the server computes it once:

    prompts     p q p q q          requests   p: a c
    responses   a b c d e    ──▶              q: b d e    ──▶    rewards of a b c d e

The requests of a call go over one stream. A single request is a unary call, which costs less.
"""

import os
from collections.abc import Sequence
from statistics import fmean
from time import monotonic
from typing import Any, Literal, TypeAlias

from kwise.client import AsyncRewardClient, Credentials, RewardClient, RewardServiceError
from kwise.client.channel import DEFAULT_CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S
from kwise.client.messages import PriorityLike, PromptLike, to_priority
from kwise.client.several.targets import TargetLike
from kwise.errors import KwiseError, Status
from kwise.rl.connection import Connection
from kwise.rl.grouping import Request, ResponseLike, group_by_prompt, split
from kwise.rl.result import ModelChanged, NotScored, ScoredResponses, Statistics
from kwise.types import Priority, Reward, ScoredGroup

OnError: TypeAlias = Literal["raise", "none"]
_Result: TypeAlias = ScoredGroup | KwiseError

# The statuses of errors that are about the responses of a request: they cannot be scored, or the
# model failed on them. If it failed on all responses of a request, the request has the error.
_OF_RESPONSES = (Status.INVALID_ARGUMENT, Status.INTERNAL)


class Scoring:
    """Scores prompts and responses that are given as parallel lists.

    A `Scoring` can be pickled, and shared by threads and event loops. It connects at the first
    call. A request that fails because the server restarts or is full is sent again until
    `timeout_s` is over.

    Args:
        address: the server, as HOST:PORT or a URI of gRPC, or several as in `RewardClient`; None
            for the environment variable KWISE_ADDRESS, which is read at the first call.
        on_error: "raise" to raise `NotScored` if a response could not be scored; "none" to give it
            the reward None. Both raise if the server cannot be reached or refuses everything.
        allow_model_change: accept a change of the server's model. Otherwise a fingerprint other
            than the first one of this object in this process raises `ModelChanged`.
        timeout_s: the longest wait without any result, in seconds.
        connect_timeout_s: the longest wait for the first connection, in seconds.
        priority: "bulk" waits behind "interactive".
        model: the name of the model that must answer; "" for whichever the server serves.
        client: the name under which a busy server counts the calls; "" for the connection.
        credentials: the token and the certificates; None for those of the environment, as in
            `RewardClient`.

    Raises:
        InvalidRequest: `address` is not a valid address.
        TypeError, ValueError: another argument has a wrong type or value.
    """

    def __init__(
        self,
        address: TargetLike | None = None,
        *,
        on_error: OnError = "raise",
        allow_model_change: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        priority: PriorityLike = Priority.INTERACTIVE,
        model: str = "",
        client: str = "",
        credentials: Credentials | None = None,
    ) -> None:
        if on_error not in ("raise", "none"):
            raise ValueError(f'on_error must be "raise" or "none", not {on_error!r}')
        to_priority(priority)  # checked here, because the first call would be late
        self._connection = Connection(
            address,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            model=model,
            client=client,
            credentials=credentials,
        )
        self._on_error = on_error
        self._allow_model_change = allow_model_change
        self._priority = priority
        self._fingerprints: dict[int, str] = {}  # the first one of each process

    @classmethod
    def raising(cls, address: TargetLike | None = None, **options: Any) -> "Scoring":
        """Return a `Scoring` for a library that cannot represent a missing reward.

        Raises:
            TypeError: the options have `on_error`.
        """
        if "on_error" in options:
            raise TypeError(
                "on_error is for TRL only, which leaves out a response without a reward; this "
                "library cannot, so an error is always raised: leave out on_error"
            )
        return cls(address, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the fingerprints, which belong to this process."""
        return {**self.__dict__, "_fingerprints": {}}

    def score(
        self, prompts: Sequence[PromptLike], responses: Sequence[ResponseLike]
    ) -> ScoredResponses:
        """Return one reward per response, in order. Empty lists cost no call.

        Args:
            prompts: the prompt of each response: a string (one user turn), messages, a
                `TemplatedText`, or token ids with the chat template applied.
            responses: strings, or token ids if the prompt is token ids.

        Raises:
            NotScored: a response could not be scored, and `on_error` is "raise".
            ModelChanged: the server changed its model, and `allow_model_change` is not set.
            RewardServiceError: the server cannot be reached, or it refuses the call.
            InvalidRequest: no address is given.
            TypeError, ValueError: an argument has a wrong type or value. The error names the item.
        """
        started_s = monotonic()
        requests = group_by_prompt(prompts, responses)
        if not requests:
            return ScoredResponses(rewards=[], errors={}, statistics=Statistics())
        client = self._connection.blocking()
        if self._must_ask(requests):
            self._connection.max_responses = client.get_model().max_responses
        requests = self._split(requests)
        results = self._send(client, requests)
        if _may_be_over_limit(requests, results):
            self._connection.max_responses = client.get_model().max_responses
            if len(smaller := self._split(requests)) > len(requests):
                requests, results = smaller, self._send(client, smaller)
        return self._collect(requests, results, started_s)

    def _send(self, client: RewardClient, requests: Sequence[Request]) -> list[_Result]:
        """Return the result of each request, in order."""
        if len(requests) > 1:
            groups = [(request.prompt, request.responses) for request in requests]
            return list(client.score_many(groups, priority=self._priority))
        (request,) = requests
        try:
            return [client.score(request.prompt, request.responses, priority=self._priority)]
        except RewardServiceError as error:
            return [_of_call(error)]

    async def score_async(
        self, prompts: Sequence[PromptLike], responses: Sequence[ResponseLike]
    ) -> ScoredResponses:
        """Return one reward per response, as `score`, on the running event loop."""
        started_s = monotonic()
        requests = group_by_prompt(prompts, responses)
        if not requests:
            return ScoredResponses(rewards=[], errors={}, statistics=Statistics())
        async with self._connection.of_running_loop() as client:
            if self._must_ask(requests):
                self._connection.max_responses = (await client.get_model()).max_responses
            requests = self._split(requests)
            results = await self._send_async(client, requests)
            if _may_be_over_limit(requests, results):
                self._connection.max_responses = (await client.get_model()).max_responses
                if len(smaller := self._split(requests)) > len(requests):
                    requests, results = smaller, await self._send_async(client, smaller)
        return self._collect(requests, results, started_s)

    async def _send_async(
        self, client: AsyncRewardClient, requests: Sequence[Request]
    ) -> list[_Result]:
        """Return the result of each request, in order."""
        if len(requests) > 1:
            groups = [(request.prompt, request.responses) for request in requests]
            return [r async for r in client.score_many(groups, priority=self._priority)]
        (request,) = requests
        try:
            scored = await client.score(request.prompt, request.responses, priority=self._priority)
            return [scored]
        except RewardServiceError as error:
            return [_of_call(error)]

    def _must_ask(self, requests: Sequence[Request]) -> bool:
        """Return True if the server's limit is not known and a request may exceed it."""
        return self._connection.max_responses is None and any(
            len(request.responses) > 1 for request in requests
        )

    def _split(self, requests: Sequence[Request]) -> list[Request]:
        limit = self._connection.max_responses
        return list(requests) if limit is None else split(requests, limit)

    def _collect(
        self,
        requests: Sequence[Request],
        results: Sequence[ScoredGroup | KwiseError],
        started_s: float,
    ) -> ScoredResponses:
        """Return the results in the caller's order.

        Raises:
            NotScored, ModelChanged, RewardServiceError: see `score`.
        """
        outcomes: dict[int, Reward | KwiseError] = {}
        scored: list[ScoredGroup] = []
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, ScoredGroup):
                self._check_model(result.fingerprint)
                scored.append(result)
                outcomes |= zip(request.indices, result.rewards, strict=True)
            elif result.status in _OF_RESPONSES:
                outcomes |= dict.fromkeys(request.indices, result)
            else:
                raise result  # the server is the cause, and not the request
        ordered = [outcomes[index] for index in range(len(outcomes))]
        rewards = [outcome for outcome in ordered if isinstance(outcome, Reward)]
        errors = {
            index: outcome
            for index, outcome in enumerate(ordered)
            if isinstance(outcome, KwiseError)
        }
        # If every request so far was refused for another reason than its length, the prompts have
        # a form that the model does not read. A run that continues with None everywhere would train
        # on nothing.
        is_refused = os.getpid() not in self._fingerprints and not all(
            error.over_limit for error in errors.values()
        )
        if errors and (self._on_error == "raise" or is_refused):
            raise NotScored(errors, len(ordered))
        stds = [reward.std for reward in rewards if reward.std is not None]
        statistics = Statistics(
            num_rewards=len(rewards),
            num_errors=len(errors),
            num_prompts=len({request.key for request in requests}),
            num_cached=sum(reward.cached for reward in rewards),
            num_truncated=sum(reward.dropped_tokens > 0 for reward in rewards),
            tokens=sum(reward.tokens for reward in rewards),
            latency_s=monotonic() - started_s,
            queue_ms=max((group.timing.queue_ms for group in scored), default=0.0),
            model_ms=max((group.timing.model_ms for group in scored), default=0.0),
            model=scored[-1].model if scored else "",
            fingerprint=scored[-1].fingerprint if scored else "",
            mean_std=fmean(stds) if stds else None,
        )
        values = [outcome.value if isinstance(outcome, Reward) else None for outcome in ordered]
        return ScoredResponses(
            rewards=values,
            errors=errors,
            statistics=statistics,
            stds=[outcome.std if isinstance(outcome, Reward) else None for outcome in ordered],
        )

    def _check_model(self, fingerprint: str) -> None:
        """Raise `ModelChanged` if the fingerprint is not the first one of this process."""
        first = self._fingerprints.setdefault(os.getpid(), fingerprint)
        if fingerprint != first:
            self._connection.max_responses = None  # another server may have another limit
        if fingerprint != first and not self._allow_model_change:
            raise ModelChanged(first, fingerprint, self._connection.address)


def _of_call(error: RewardServiceError) -> KwiseError:
    """Return the error of a call as that of its only request, or raise it.

    Raises:
        RewardServiceError: the cause is the server, and not what was sent.
    """
    if error.status not in _OF_RESPONSES:
        raise error
    return error


def _may_be_over_limit(requests: Sequence[Request], results: Sequence[_Result]) -> bool:
    """Return True if a request of several responses was refused as a whole.

    The server may have restarted with a lower limit than it had.
    """
    return any(
        isinstance(result, KwiseError)
        and result.status is Status.INVALID_ARGUMENT
        and len(request.responses) > 1
        for request, result in zip(requests, results, strict=True)
    )
