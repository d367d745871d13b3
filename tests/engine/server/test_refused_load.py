"""The memory of a model that is refused after its weights were loaded."""

import gc
import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import pytest

from kwise.engine.artifact.files import FileEntry
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import GOLDEN, MANIFEST
from kwise.engine.config import EngineConfig
from kwise.engine.model.session import GraphSession
from kwise.engine.server.models.loader import Loader
from kwise.engine.server.models.source import Source
from kwise.engine.server.service import RewardService
from kwise.errors import ArtifactError


def spoil_golden_reward(artifact: Path) -> None:
    """Make the golden check of an artifact fail."""
    lines = (artifact / GOLDEN).read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "reward": first["reward"] + 1})
    content = "\n".join(lines).encode()
    (artifact / GOLDEN).write_bytes(content)
    manifest = read_manifest(artifact)
    entry = FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    changed = msgspec.structs.replace(manifest, files={**manifest.files, GOLDEN: entry})
    (artifact / MANIFEST).write_text(changed.signed().to_json(), encoding="utf-8")


def num_sessions() -> int:
    gc.unfreeze()
    gc.collect()
    return sum(type(each) is GraphSession for each in gc.get_objects())


async def test_a_model_that_was_refused_is_freed(tiny_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "served"
    shutil.copytree(tiny_artifact, path)
    source = Source(path=path, name="first")
    loader = Loader(EngineConfig(threads=1))
    service = RewardService(loader.load([source]))
    try:
        spoil_golden_reward(path)
        before = num_sessions()
        with pytest.raises(ArtifactError, match=GOLDEN):  # pytest keeps the exception
            await loader.replace(service, "first", source)
        assert num_sessions() == before
    finally:
        await service.stop()
