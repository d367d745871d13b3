"""A scorer for bulk work whose models are in processes of a Ray cluster.

`kwise rerank` reads windows of groups in one process, and writes their rows there in the order of
the input. Here each window is computed by the next free worker. Its rewards depend on the window
alone, so the output does not depend on the number of workers.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayActorError, RayTaskError  # pyright: ignore[reportMissingImports]

from kwise.bulk.scorers.engine import EngineScorer
from kwise.bulk.scorers.protocol import GroupResult, ModelIdentity
from kwise.cluster.bulk.worker_config import WorkerConfig
from kwise.engine.config import EngineConfig
from kwise.errors import ArtifactError, ConfigError, LibraryFailed
from kwise.types import Group

# Windows that a worker has: it encodes one while it computes the other.
_WINDOWS_OF_WORKER = 2
# How often a window is computed again after its worker died. A window may be what ends the worker
# (out of memory), so it must not be tried forever.
_MAX_DEATHS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why a worker could not load the model. Ray would wrap an exception in a class of its own."""

    error: ArtifactError | ConfigError


class Worker:
    """A process that holds the model. Ray starts it again if it dies."""

    def __init__(self, artifact: str, engine: EngineConfig) -> None:
        self._failed: Failed | None = None
        try:
            self._scorer = EngineScorer.load(Path(artifact), engine)
        except (ArtifactError, ConfigError) as error:
            self._failed = Failed(error=error)

    async def identity(self) -> ModelIdentity | Failed:
        """Return the model, or why it could not be loaded."""
        return self._failed or self._scorer.identity

    async def score(self, groups: Sequence[Group]) -> list[GroupResult]:
        """Return one result per group, in order."""
        return list(await self._scorer.score(groups))


class RayScorer:
    """Scores windows on the workers of a Ray cluster. A `BulkScorer`."""

    def __init__(self, workers: Sequence[Any], identity: ModelIdentity) -> None:
        self.identity = identity
        self.max_windows = _WINDOWS_OF_WORKER * len(workers)
        self._workers = workers
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for _ in range(_WINDOWS_OF_WORKER):
            for worker in workers:
                self._free.put_nowait(worker)

    @classmethod
    async def start(cls, artifact: str, engine: EngineConfig, config: WorkerConfig) -> "RayScorer":
        """Start the workers, and return once each has loaded and checked the model.

        Raises:
            ArtifactError: the artifact is damaged, or fails its golden check on a worker.
            ConfigError: an option does not suit the artifact, or the cluster has no room.
        """
        engine = replace(engine, threads=engine.threads or config.cpus_per_worker)
        kind = ray.remote(
            num_cpus=config.cpus_per_worker,
            num_gpus=config.gpus_per_worker,
            max_concurrency=_WINDOWS_OF_WORKER,
            max_restarts=-1,
            max_task_retries=_MAX_DEATHS,
        )(Worker)
        num_workers = config.workers or _room(config)
        workers = [kind.remote(artifact, engine) for _ in range(num_workers)]
        for identity in await asyncio.gather(*(worker.identity.remote() for worker in workers)):
            if isinstance(identity, Failed):
                raise identity.error
        return cls(workers, identity)

    async def score(self, groups: Sequence[Group]) -> Sequence[GroupResult]:
        """Return one result per group, in order. A window whose worker dies is computed again.

        Raises:
            LibraryFailed: `_MAX_DEATHS` workers died while they computed this window.
        """
        worker = await self._free.get()
        try:
            results: Sequence[GroupResult] = await worker.score.remote(list(groups))
        except (RayActorError, RayTaskError) as error:
            raise LibraryFailed(
                f"a worker failed on a window of {len(groups)} groups: {error}"
            ) from error
        finally:
            self._free.put_nowait(worker)
        return results

    async def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            ray.kill(worker)


def _room(config: WorkerConfig) -> int:
    """Return the number of workers that the cluster has CPUs and GPUs for.

    Raises:
        ConfigError: there is none.
    """
    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 0) // config.cpus_per_worker)
    if config.gpus_per_worker:
        room = min(room, int(resources.get("GPU", 0) // config.gpus_per_worker))
    if not room:
        raise ConfigError(
            f"--cpus-per-worker is {config.cpus_per_worker} and --gpus-per-worker is "
            f"{config.gpus_per_worker:g}; the cluster has {resources.get('CPU', 0):g} CPUs and "
            f"{resources.get('GPU', 0):g} GPUs in all"
        )
    return room
