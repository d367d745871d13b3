"""Tests of the engine on CUDA without a GPU: `make test-cuda` runs them, `make test` does not.

The real onnxruntime-gpu runs over a stand-in for the CUDA libraries (standin/). The stand-in's
device memory is memory of the host. It names kernels and matmuls in a log and does not run them, so
rewards mean nothing here. Which device a node runs on, the kernel that each node takes, launches,
copies, waits and captured graphs are those of a GPU.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import onnxruntime as ort
import pytest

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from tests.cuda.passes import PRECISIONS
from tests.cuda.standin.events import StandIn
from tests.exports import export_quietly


def _is_loaded() -> bool:
    try:
        StandIn()
    except (OSError, AttributeError):
        return False
    return True


collect_ignore_glob = [] if _is_loaded() else ["test_*.py"]


@pytest.fixture
def stand_in() -> StandIn:
    stand_in = StandIn()
    stand_in.clear()
    return stand_in


@pytest.fixture(autouse=True)
def zeroed_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill buffers with zeros. No kernel writes rewards here, and what is left there may be NaN."""
    allocate = ort.OrtValue.ortvalue_from_shape_and_type

    def zeroed(*arguments: Any) -> Any:
        value = allocate(*arguments)
        size = min(value.tensor_size_in_bytes(), 1 << 20)  # pools are larger, and not read
        ctypes.memset(value.data_ptr(), 0, size)
        return value

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", staticmethod(zeroed))


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A Llama of two layers with grouped heads of 64, in all precisions that run on CUDA."""
    from tests.tiny_models import byte_tokenizer, tiny_model  # imports torch: slow

    path = tmp_path_factory.mktemp("cuda")
    options = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 192,
        "max_position_embeddings": 2048,
    }
    checkpoint = tiny_model("Llama", options, byte_tokenizer(), path / "checkpoint")
    names = ",".join(precision.value for precision in PRECISIONS)
    # Weights are random, so rounding may change the order of many pairs.
    exported = export_quietly(checkpoint, path / "artifact", dtype=names, min_agreement=0.1)
    return read_artifact(exported)


@pytest.fixture(scope="session")
def open_session(artifact: Artifact) -> Callable[..., GraphSession]:
    """A function that opens the artifact on a device."""

    def open_it(precision: Precision, device: str = "cuda:0", **options: Any) -> GraphSession:
        return GraphSession(artifact, precision=precision, device=device, threads=1, **options)

    return open_it
