"""Replace the artifact of a running server: SIGHUP loads the artifact that is at its path now.

The manifest is compared first, so that an unchanged artifact, or one of another name, is not
loaded. The new model is loaded and checked while the old one serves; both are in memory for that
time. Then new requests go to the new model, and the old one is closed when it has answered its
requests. If the new artifact is refused, the old one continues to serve.

The artifact must be replaced by renaming, as `kwise export --overwrite` does. The runtime maps the
weights of the running model, so overwritten files would change its rewards.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from kwise.engine.artifact import read_manifest
from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.server.garbage import freeze_heap
from kwise.engine.server.service import RewardService
from kwise.engine.server.systemd import notify_ready, notify_reloading
from kwise.errors import ArtifactError, ConfigError

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

LOADER_THREAD = "kwise-load"


class Reloader:
    """Reloads the artifact of a service, one reload at a time."""

    def __init__(self, service: RewardService, artifact: Path, engine: EngineConfig) -> None:
        self._service = service
        self._artifact = artifact
        self._engine = engine
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Ask for a reload. Safe in a signal handler of the event loop."""
        self._asked.set()

    async def run(self) -> None:
        """Reload each time that somebody asks, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            notify_reloading()
            serving = self._service.scorer.description
            try:
                if (new := await self._load()) is not None:
                    _LOG.info("serving %s instead of %s", new.description, serving)
                    await self._service.swap(new)
                    # The step of the event loop in which the old tasks end refers to them, and they
                    # to the old model. It would be frozen with them.
                    await asyncio.sleep(0)
                    freeze_heap()
            except (ArtifactError, ConfigError) as error:
                _LOG.error("reload refused, %s goes on serving: %s", serving, error)
            except Exception:  # noqa: BLE001 - the next SIGHUP must still be obeyed
                _LOG.exception("reload failed, %s goes on serving", serving)
            notify_ready(f"serving {self._service.scorer.description}")

    async def _load(self) -> Scorer | None:
        """Load and start the artifact at the path. Return None if it has not changed."""
        serving, counters = self._service.scorer.artifact.manifest, self._service.scorer.counters
        manifest = read_manifest(self._artifact)
        if manifest.name != serving.name:
            raise ArtifactError(
                f"{self._artifact}: this artifact is called {manifest.name}, and clients ask for "
                f"{serving.name} (kwise export --name)"
            )
        if manifest.checksum == serving.checksum:
            _LOG.info("reload: %s has not changed", self._artifact)
            return None
        _LOG.info("reload: loading %s", self._artifact)
        new = await in_daemon_thread(lambda: Scorer.load(self._artifact, self._engine, counters))
        new.start()
        return new


async def in_daemon_thread(work: Callable[[], _T]) -> _T:
    """Return `work()`, run in a thread that does not delay the end of the process.

    `asyncio.to_thread` would: the event loop and the interpreter wait for its thread at exit, and
    loading a large model takes minutes.
    """
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()  # so that a cancelled reload leaves it to the thread

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            future.set_exception(error)

    threading.Thread(target=run, name=LOADER_THREAD, daemon=True).start()
    return await asyncio.wrap_future(future)
