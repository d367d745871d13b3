"""ONNX Runtime and OpenVINO send nothing to their makers."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


# Optimum imports onnxruntime in `kwise export`, so the command line must come first there.
@pytest.mark.parametrize(
    "first",
    [
        pytest.param("import kwise.engine.model.runtime.pools", id="engine"),
        pytest.param(
            "import contextlib, io, kwise.cli\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            "    kwise.cli.main(['--help'])",
            id="command",
        ),
    ],
)
def test_onnxruntime_writes_no_identifier_of_the_machine(tmp_path: Path, first: str) -> None:
    """The identifier is written with the first report, as the module is imported."""
    # ONNX Runtime reports nothing from CI either, which would make the test pass without kwise.
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    code = f"{first}\nimport onnxruntime"
    subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, check=True
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_writes_no_identifier_of_the_machine(tmp_path: Path) -> None:
    """Its converter would, as the package is imported, and then report each use."""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    code = "import sys, kwise.engine.model.runtime.openvino_graph\n"
    code += "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, check=True
    )
    assert list(tmp_path.iterdir()) == []
