"""Another artifact under a running service: SIGHUP loads what lies at the artifact's path now, and no request fails.

The artifact must be replaced by renaming, as `kwise export --overwrite` does, and never be written over: the runtime maps the
weights, and the running model would answer from the new ones. The new model is read, verified and checked beside the old one,
which goes on serving; for that time both are in memory. New requests then go to the new model, and the old one leaves when it
has answered what it had taken. Replies name the fingerprint of the model that made them. Where the new one is refused, the old
one stays.
"""

import asyncio
import logging
from pathlib import Path

from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.server.service import RewardService
from kwise.errors import ArtifactError, ConfigError

_LOG = logging.getLogger(__name__)


class Reloader:
    """Reloads one at a time: `ask` from a signal handler, `run` as a task."""

    def __init__(self, service: RewardService, artifact: Path, engine: EngineConfig) -> None:
        self._service = service
        self._artifact = artifact
        self._engine = engine
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._reload()
            except Exception:  # noqa: BLE001 - the next SIGHUP must find somebody
                _LOG.exception(
                    "reload failed, %s goes on serving", self._service.scorer.description
                )

    async def _reload(self) -> None:
        old = self._service.scorer
        serving = old.artifact.manifest
        try:
            new = await asyncio.to_thread(Scorer.load, self._artifact, self._engine, old.counters)
        except (ArtifactError, ConfigError) as error:
            _LOG.error("reload refused, %s goes on serving: %s", old.description, error)
            return
        if new.artifact.manifest.name != serving.name:
            _LOG.error(
                "reload refused, %s goes on serving: this artifact is called %s, and clients ask for %s (kwise export --name)",
                old.description,
                new.artifact.manifest.name,
                serving.name,
            )
            return
        if new.artifact.manifest.fingerprint == serving.fingerprint:
            _LOG.info("reload: %s has not changed", self._artifact)
            return
        new.start()
        self._service.scorer = new
        self._service.leaving.add(old)
        _LOG.info(
            "serving %s instead of %s %s", new.description, serving.name, serving.fingerprint[:12]
        )
        await old.idle()
        await old.close()
        self._service.leaving.discard(old)
