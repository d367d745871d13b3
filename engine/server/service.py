"""The reward service without a protocol: dataclasses in, dataclasses or `KwiseError` out.

It holds the models that are served, by name, admits requests, and knows when it is idle. gRPC is an
adapter on top of it (`grpc/rewards.py`); each protocol has one. An adapter converts messages, wraps
each call in `call()`, and maps the status of an error to its own protocol.

All methods run on one event loop. Work that grows with the pairs of a request is done in slices,
between which the loop serves other requests.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from types import MappingProxyType

from kwise.engine.served_model import ServedModel
from kwise.engine.server.base_service import BaseRewardService, RequestLimits
from kwise.engine.server.calls.counts import CallCounts
from kwise.engine.server.calls.running_call import note_group
from kwise.errors import Unavailable, UnknownModel
from kwise.types import Group, ModelInfo, ScoredGroup


class RewardService(BaseRewardService):
    """Scores, ranks and compares groups with the models that are served at present.

    A request is answered by the model that was served under its name when it arrived.

    Args:
        models: at least one model that is started. The first one answers requests that name none.

    Attributes:
        call_counts: the calls that have ended, for metrics.
    """

    def __init__(self, models: Sequence[ServedModel], limits: RequestLimits | None = None) -> None:
        super().__init__(limits)
        self.call_counts = CallCounts()
        self.observers.append(self.call_counts)
        self._models = {model.name: model for model in models}
        self._default = models[0].name
        # Models that still answer earlier requests, and the tasks that stop them then.
        self._retiring: dict[ServedModel, asyncio.Task[None]] = {}
        self._listeners: list[Callable[[], None]] = []

    # Requests

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The models that are served, by name, in the order in which they were added."""
        return MappingProxyType(self._models)

    @property
    def description(self) -> str:
        """The name, fingerprint, layout, precision and runtime of each model, for the log."""
        return ", ".join(model.description for model in self._models.values())

    def model(self, name: str = "") -> ServedModel:
        """Return the model that answers requests for `name`; "" is the first that was loaded.

        Raises:
            UnknownModel: no model of that name is served.
            Unavailable: the service drains.
        """
        self.check_not_draining()
        model = self._models.get(name or self._default)
        if model is None:
            raise UnknownModel(name or self._default, list(self._models))
        return model

    async def score(self, group: Group, model: str = "") -> ScoredGroup:
        served = self.model(model)
        self.limits.check(len(group.responses))
        call = note_group(served.name, group)
        scored = await served.score(group)
        if call is not None:
            call.note_timing(scored.timing)
        return scored

    async def describe(self, model: str = "") -> ModelInfo:
        return self.model_info(model)

    def model_info(self, model: str = "") -> ModelInfo:
        """Describe a model that is served. Raises the same errors as `model`."""
        limits = self.limits
        return self.model(model).info(
            max_responses=limits.max_responses, max_pairs=limits.max_pairs
        )

    def admit(self, model: str) -> None:
        self.model(model)

    def check_not_draining(self) -> None:
        """Raise Unavailable if the service drains."""
        if self.draining.is_set():
            raise Unavailable.draining()

    # The life of the service

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever a model is added or removed."""
        self._listeners.append(listener)

    async def add(self, model: ServedModel) -> None:
        """Serve `model`, which is started, in place of the one of its name if there is one.

        This returns once the one that was replaced has answered its requests.
        """
        old = self._models.get(model.name)
        self._models[model.name] = model
        self._notify()
        if old is not None:
            await self._retire(old)

    async def remove(self, name: str) -> None:
        """Stop serving the model called `name`. Return once it has answered its requests.

        Raises:
            UnknownModel: no model of that name is served.
        """
        if name not in self._models:
            raise UnknownModel(name, list(self._models))
        old = self._models.pop(name)
        self._notify()
        await self._retire(old)

    async def stop(self) -> None:
        """Answer every waiting request with `Unavailable`, and release the models."""
        models = (*self._models.values(), *self._retiring)
        await asyncio.gather(*(model.stop() for model in models))

    async def _retire(self, model: ServedModel) -> None:
        """Stop a model once it has answered its requests, even if the caller is cancelled."""

        async def retire() -> None:
            try:
                await model.idle()
                await model.stop()
            finally:
                del self._retiring[model]

        # In an empty context: it may outlive the call that has the model replaced.
        task = asyncio.create_task(retire(), name="kwise retire", context=Context())
        self._retiring[model] = task
        await asyncio.shield(task)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()
