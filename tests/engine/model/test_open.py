"""Graphs are opened, or one line says why a runtime cannot open them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kwise.engine.artifact.read import read_artifact
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.session import GraphSession
from kwise.errors import ArtifactError

RUNTIMES = [Runtime.ONNXRUNTIME, Runtime.OPENVINO]


def _link(source: Path, directory: Path, store: Path) -> Path:
    """Fill `directory` with links to copies of the files of `source` in `store`."""
    directory.mkdir(parents=True)
    store.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        shutil.copy(path, store / path.name)
        (directory / path.name).symlink_to(store / path.name)
    return directory


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_artifact_in_a_volume_of_kubernetes_is_opened(
    runtime: Runtime, tiny_artifact: Path, tmp_path: Path
) -> None:
    """Such a volume has a link to each file, through a directory that can be exchanged."""
    artifact = _link(tiny_artifact, tmp_path / "volume", tmp_path / "volume" / "..data")
    GraphSession(read_artifact(artifact), runtime=runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_on_another_disk_are_refused_with_what_to_do(
    runtime: Runtime, tiny_artifact: Path, tmp_path: Path
) -> None:
    artifact = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    disk = tmp_path / "disk"
    disk.mkdir()
    for weights in artifact.glob("*.data"):
        shutil.move(weights, disk / weights.name)
        weights.symlink_to(disk / weights.name)
    with pytest.raises(ArtifactError) as refused:
        GraphSession(read_artifact(artifact), runtime=runtime)
    message = str(refused.value)
    assert f"it is a link to {disk}" in message and f"cp -rL {artifact} COPY" in message
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))  # follows links, as cp -rL does
    GraphSession(read_artifact(copy), runtime=runtime)


def test_links_to_the_graph_and_its_weights_in_one_directory_are_followed(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    """As in the cache of Hugging Face Hub."""
    artifact = _link(tiny_artifact, tmp_path / "snapshot", tmp_path / "blobs")
    GraphSession(read_artifact(artifact))
    with pytest.raises(ArtifactError, match="it is a link to"):
        GraphSession(read_artifact(artifact), runtime=Runtime.OPENVINO)


_OPEN = """
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
class Leftover:
    def find_spec(name, path=None, target=None):
        if name == "onnxruntime":
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = ["site-packages/onnxruntime"]
            return spec
sys.meta_path.insert(0, Leftover)
from kwise.cli import main
sys.exit(main(["serve", sys.argv[1], "--port", "0"]))
"""


def test_what_an_uninstall_left_of_onnx_runtime_is_not_taken_for_the_package(
    tiny_artifact: Path,
) -> None:
    """Python imports a folder without __init__.py as an empty package."""
    run = subprocess.run(
        [sys.executable, "-c", _OPEN, tiny_artifact], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2, run.stderr
    assert "an uninstall left only parts in site-packages/onnxruntime" in run.stderr
    assert "report this as a bug" not in run.stderr
