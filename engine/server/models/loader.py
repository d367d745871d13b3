"""Load artifacts for a service: at its start, at SIGHUP, and when an administrator asks.

The manifest is compared first, so that an artifact that has not changed is not loaded again. A new
model is loaded and checked while the old one serves; both are in memory for that time. Then new
requests go to the new model, and the old one is closed when it has answered its requests. If an
artifact is refused, what was served before continues to serve.

An artifact must be replaced by renaming, as `kwise export --overwrite` does. The runtime maps the
weights of the running model, so overwritten files would change its rewards.

A change that has begun is completed even if the call that asked for it is cancelled, as at its
deadline. A change that stopped halfway could leave a model in memory for good.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, TypeVar

from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.config import EngineConfig
from kwise.engine.ensemble import Ensemble
from kwise.engine.schedule.device_turns import Devices
from kwise.engine.scorer import Scorer
from kwise.engine.server.daemon_thread import in_daemon_thread
from kwise.engine.server.models.ensembles import (
    check_is_no_member,
    check_suits_ensembles,
    new_ensemble,
)
from kwise.engine.server.models.garbage import freeze_heap, return_memory
from kwise.engine.server.models.source import EnsembleSource, Source
from kwise.engine.server.service import RewardService
from kwise.engine.statistics.counters import Counters
from kwise.errors import ArtifactError, ConfigError, InvalidRequest

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

LOADER_THREAD = "kwise-load"


class Loader:
    """Loads artifacts, one at a time, and knows from where each model was loaded.

    Args:
        engine: the options of each model's engine.
    """

    def __init__(self, engine: EngineConfig) -> None:
        self._engine = engine
        self._devices = Devices()
        self._sources: dict[str, Source] = {}
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()

    def load(self, sources: Sequence[Source]) -> list[Scorer]:
        """Load and start the models that a server starts with.

        Raises:
            ArtifactError: an artifact is damaged or fails its golden check.
            ConfigError: an option does not suit an artifact, or two models have one name.
        """
        if len(sources) > 1:
            by_name(sources)  # before the first of them is loaded
        models = [self._load(source.name, source, None) for source in sources]
        self._sources = {model.name: source for model, source in zip(models, sources, strict=True)}
        for model in models:
            model.start()
        return models

    async def combine(self, service: RewardService, source: EnsembleSource) -> Ensemble:
        """Serve an ensemble of models of the service.

        Raises:
            InvalidRequest: a member is not served, is an ensemble itself, or reads pairs of texts
                while others read conversations; or a model of another kind has the name.
        """
        return await self._completed(self._combine(service, source))

    async def _combine(self, service: RewardService, source: EnsembleSource) -> Ensemble:
        async with self._changing:
            ensemble = new_ensemble(service, source)
            _LOG.info("serving %s", ensemble.description)
            await service.add(ensemble)
        return ensemble

    def source(self, name: str) -> Source | None:
        """Return the artifact that a model was loaded from; None for an ensemble."""
        return self._sources.get(name)

    async def reload(self, service: RewardService) -> None:
        """Load the artifacts that have changed since their models were loaded.

        Errors are logged.
        """
        for name in list(self._sources):
            await self._completed(self._reload(service, name))

    async def _reload(self, service: RewardService, name: str) -> None:
        async with self._changing:
            if (source := self._sources.get(name)) is None:
                return  # it was unloaded meanwhile
            serving = service.models[name].description
            try:
                await self._replace(service, name, source)
            except (ArtifactError, ConfigError) as error:
                _LOG.error("reload refused, %s goes on serving: %s", serving, error)
            except Exception:  # noqa: BLE001 - the next SIGHUP must still be obeyed
                _LOG.exception("reload failed, %s goes on serving", serving)

    async def replace(self, service: RewardService, name: str, source: Source) -> bool:
        """Serve the artifact at `source` as the model called `name`, whether or not there is one.

        Returns:
            False if that artifact is served as this model already.

        Raises:
            ArtifactError: the artifact is damaged, fails its golden check, has another name, or
                does not suit an ensemble that the model is a member of.
            ConfigError: an option does not suit the artifact.
            InvalidRequest: the name is that of an ensemble.
        """

        async def change() -> bool:
            async with self._changing:
                return await self._replace(service, name, source)

        return await self._completed(change())

    async def _replace(self, service: RewardService, name: str, source: Source) -> bool:
        serving = service.models.get(name)
        if isinstance(serving, Ensemble):
            raise InvalidRequest("model", f"{name!r} is an ensemble; unload that first")
        manifest = await _in_loader_thread(lambda: read_manifest(source.path))
        if not source.name and manifest.name != name:
            raise ArtifactError(
                f"{source.path}: this artifact is called {manifest.name}, and clients ask for "
                f"{name} (kwise export --name)"
            )
        check_suits_ensembles(service, name, source, manifest)
        counters = None
        if isinstance(serving, Scorer):
            if manifest.checksum == serving.artifact.manifest.checksum:
                _LOG.info("reload: %s has not changed", source.path)
                self._sources[name] = source
                return False
            counters = serving.counters
        _LOG.info("reload: loading %s", source.path)
        try:
            new = await _in_loader_thread(lambda: self._load(name, source, counters))
        except Exception as error:
            _clear_frames(error)
            await _free_memory()
            raise
        if new.artifact.manifest.checksum != manifest.checksum:  # which was checked above
            del new
            await _free_memory()
            raise ArtifactError(f"{source.path}: it was replaced during the load; load it again")
        # In an empty context: the tasks of the model outlive the call that has it loaded.
        Context().run(new.start)
        instead = f" instead of {serving.description}" if serving else ""
        _LOG.info("serving %s%s", new.description, instead)
        self._sources[name] = source
        del serving
        await service.add(new)
        await _free_memory()
        return True

    async def unload(self, service: RewardService, name: str) -> None:
        """Stop serving the model called `name`. Return once it has answered its requests.

        Raises:
            UnknownModel: no model of that name is served.
            InvalidRequest: the model is a member of an ensemble.
        """

        async def change() -> None:
            async with self._changing:
                check_is_no_member(service, name)
                self._sources.pop(name, None)
                await service.remove(name)
                _LOG.info("unloaded %s", name)
                await _free_memory()

        await self._completed(change())

    async def _completed(self, change: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of a change. It goes on if the caller is cancelled."""
        task = asyncio.create_task(change, name="kwise change of models")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    def _load(self, name: str, source: Source, counters: Counters | None) -> Scorer:
        return Scorer.load(source.path, self._engine, counters, name, self._devices)


def _log_failure(change: "asyncio.Task[Any]") -> None:
    """Log why a change failed whose caller has left."""
    if not change.cancelled() and (error := change.exception()) is not None:
        _LOG.error("a change of the models whose call had ended failed: %s", error)


def _clear_frames(error: BaseException | None) -> None:
    """Drop the local variables of a traceback, among which is the model that was refused."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


async def _in_loader_thread(work: Callable[[], _T]) -> _T:
    return await in_daemon_thread(work, name=LOADER_THREAD)


async def _free_memory() -> None:
    """Free the memory of a model that was unloaded, replaced or refused."""
    # The step of the event loop in which the old tasks end refers to them, and they to the old
    # model. It would be frozen with them.
    await asyncio.sleep(0)
    freeze_heap()
    await _in_loader_thread(return_memory)


def by_name(sources: Sequence[Source]) -> dict[str, Source]:
    """Return the artifacts by the names of their models.

    Raises:
        ArtifactError: a manifest is damaged.
        ConfigError: two models have one name.
    """
    named: dict[str, Source] = {}
    for source in sources:
        name = source.name or read_manifest(source.path).name
        if name in named:
            raise ConfigError(
                f"ARTIFACT {source.path}: its model is called {name}, as that of "
                f"{named[name].path} is; give one of them another name: NAME={source.path}"
            )
        named[name] = source
    return named
