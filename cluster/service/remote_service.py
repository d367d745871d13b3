"""A reward service whose scores come from replicas. Ranks and comparisons are made here."""

import asyncio
import contextvars
import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from ray.exceptions import RayActorError  # pyright: ignore[reportMissingImports]
from ray.serve.exceptions import (  # pyright: ignore[reportMissingImports]
    ReplicaUnavailableError,
)

from kwise.engine.server.base_service import BaseRewardService, RequestLimits
from kwise.errors import KwiseError, ServiceFailed, Unavailable, UnknownModel
from kwise.types import Counters, Group, ModelInfo, ScoredGroup

_LOG = logging.getLogger("ray.serve")

# How many replicas may die while they compute one group. The group may be what ends them (out of
# memory), so it must not end one replica after the other.
MAX_DEATHS = 3


class RemoteService(BaseRewardService):
    """Scores on the replicas of a deployment.

    Args:
        replicas: Ray's handle of the deployment of `RewardReplica`.
        models: the names of the models. The first answers requests that name none.
        limits: the largest request that is accepted.
    """

    def __init__(self, replicas: Any, models: Sequence[str], limits: RequestLimits) -> None:
        super().__init__(limits)
        self._replicas = replicas
        self._score = replicas.score
        self._describe = replicas.describe
        self._models = models

    def admit(self, model: str) -> None:
        if self.draining.is_set():
            raise Unavailable.draining()
        if model and model not in self._models:
            raise UnknownModel(model, self._models)

    async def score(self, group: Group, model: str = "") -> ScoredGroup:
        self.admit(model)
        self.limits.check(len(group.responses))
        outcome = await _answer(self._score, model or self._models[0], group)
        if isinstance(outcome, KwiseError):
            raise outcome
        return outcome

    async def describe(self, model: str = "") -> ModelInfo:
        """Describe a model. Its counters are the sums over the replicas that have it loaded.

        Raises:
            UnknownModel: no model of that name is served.
            Unavailable: the service drains, or a replica has died and Ray does not know it yet.
        """
        self.admit(model)
        model = model or self._models[0]
        try:
            answers = await self._replicas.broadcast("describe", model).results_async()
        except (RayActorError, ReplicaUnavailableError) as error:
            # Without the counters of that replica, the sums would be those of fewer replicas.
            raise Unavailable("a replica has just died; ask again") from error
        infos = [info for info in answers if info is not None]
        infos = infos or [await _answer(self._describe, model, True)]
        total = Counters(
            **{
                field.name: sum(getattr(info.counters, field.name) for info in infos)
                for field in fields(Counters)
            }
        )
        return replace(
            infos[0],
            counters=total,
            queue_tokens=sum(info.queue_tokens for info in infos),
            queue_sequences=sum(info.queue_sequences for info in infos),
            max_queue_tokens=sum(info.max_queue_tokens for info in infos),
            num_devices=sum(info.num_devices for info in infos),
            max_responses=self.limits.max_responses,
            max_pairs=self.limits.max_pairs,
        )


async def _answer(method: Any, *arguments: Any) -> Any:
    """Call a method of a replica, and again on another one if the replica dies.

    Raises:
        ServiceFailed: `MAX_DEATHS` replicas have died while they computed this.
    """
    for _ in range(MAX_DEATHS):
        # Ray takes the id of a call from the context, so the calls of one stream would share it,
        # and its router could not tell them apart. A new context gives each call its own.
        response = contextvars.Context().run(method.remote, *arguments)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayActorError, ReplicaUnavailableError) as error:
            _LOG.warning("a replica died, its request goes to another one: %s", error)
    _LOG.error("%d replicas died while they computed one request; it is given up", MAX_DEATHS)
    raise ServiceFailed
