"""The deployment that holds the models: groups in, scored groups or errors out."""

import logging
from collections.abc import Awaitable, Callable, Mapping

from ray import serve  # pyright: ignore[reportMissingImports]

from kwise.cluster.service.autoscaling import QUEUED_TOKENS
from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.server.daemon_thread import in_daemon_thread
from kwise.engine.server.models.loader import LOADER_THREAD
from kwise.engine.server.models.source import Source
from kwise.engine.server.service import RewardService
from kwise.errors import KwiseError
from kwise.types import Group, ModelInfo, ScoredGroup

_LOG = logging.getLogger("ray.serve")


class LoadedModel:
    """A model that Ray's multiplexing holds, and closes by calling `__del__` on the instance."""

    def __init__(self, scorer: Scorer, closed: Callable[[], None]) -> None:
        self.scorer = scorer
        self.service = RewardService([scorer])
        self._closed = closed
        # An attribute of the instance: Python's garbage collector does not call it.
        self.__del__ = self.close

    async def close(self) -> None:
        """Release the model once its running requests are answered."""
        await self.service.idle()
        await self.service.stop()
        self._closed()


class RewardReplica:
    """One replica. The first model is loaded, and checked, before Ray calls it ready.

    Args:
        artifacts: the artifacts by the names of their models.
        engine: the options of the engine.
        max_models: the number of models to hold at once.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, artifacts: Mapping[str, Source], engine: EngineConfig, max_models: int
    ) -> None:
        self._artifacts = artifacts
        self._engine = engine
        self._loaded: dict[str, LoadedModel] = {}

        async def load(name: str) -> LoadedModel:
            return await self._load(name)

        multiplexed = serve.multiplexed(max_num_models_per_replica=max_models)
        self._model: Callable[[str], Awaitable[LoadedModel]] = multiplexed(load)
        await self._model(next(iter(artifacts)))

    async def score(self, model: str, group: Group) -> ScoredGroup | KwiseError:
        """Return the rewards of the group. An error is a value.

        Ray would wrap an exception in a class of its own, and log a traceback for it.
        """
        try:
            service = (await self._model(model)).service
            with service.call():
                return await service.score(group)
        except KwiseError as error:
            return error

    async def describe(self, model: str, load: bool = False) -> ModelInfo | None:
        """Describe a model; return None if it is not loaded and `load` is False."""
        if model not in self._loaded and not load:
            return None
        return (await self._model(model)).service.model_info()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what `QueuedTokensPolicy` counts. Ray calls this."""
        tokens = (model.scorer.num_tokens_in_flight for model in self._loaded.values())
        return {QUEUED_TOKENS: float(sum(tokens))}

    async def _load(self, name: str) -> LoadedModel:
        path = self._artifacts[name].path
        scorer = await in_daemon_thread(
            lambda: Scorer.load(path, self._engine, name=name), name=LOADER_THREAD
        )
        scorer.start()
        _LOG.info("serving %s", scorer.description)

        def closed() -> None:
            if self._loaded.get(name) is model:  # it may have been loaded again meanwhile
                del self._loaded[name]
            _LOG.info("closed %s", scorer.description)

        model = self._loaded[name] = LoadedModel(scorer, closed)
        return model
