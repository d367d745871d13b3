"""ONNX Runtime on a GPU, as far as a machine without one can test it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime as ort
import pytest

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.model.devices import Device, Kind
from kwise.engine.model.runtime.cuda import (
    CUDA_ENVIRONMENT,
    _without_cuda,
    assigned_operators,
    check_cuda_version,
    check_placement,
    check_visible,
    providers,
)
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph, sums_exactly
from kwise.engine.model.runtime.open import open_graph
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.precision import Precision
from kwise.errors import ConfigError

CPU, GPU = Device(kind=Kind.CPU), Device(kind=Kind.CUDA, index=1)
CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    return read_artifact(tiny_artifact)


def test_a_gpus_options_name_the_device_and_leave_fp32_exact() -> None:
    assert providers(CPU, 0) == providers(CPU, 1 << 30) == [CPU_PROVIDER]
    options = {"device_id": "1", "use_tf32": "0"}
    assert providers(GPU, 0) == [(CUDA_PROVIDER, options), CPU_PROVIDER]
    captured = options | {"enable_cuda_graph": "1"}
    assert providers(GPU, 0, capture=True) == [(CUDA_PROVIDER, captured), CPU_PROVIDER]


def test_with_a_memory_limit_the_arena_grows_by_what_is_requested() -> None:
    cuda, _ = providers(GPU, 8 << 30)
    assert isinstance(cuda, tuple)
    options = cuda[1]
    assert options["gpu_mem_limit"] == str(8 << 30)
    assert options["arena_extend_strategy"] == "kSameAsRequested"


def test_int8_takes_the_fast_kernels_if_their_sums_are_exact() -> None:
    assert sums_exactly({"avx512f", "avx512_vnni"}) and sums_exactly({"avx2", "avx_vnni"})
    assert (
        not sums_exactly({"avx2"})
        and not sums_exactly({"avx512f", "avx_vnni"})
        and not sums_exactly(frozenset())
    )


def test_a_session_that_fell_back_to_the_cpu_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--device cuda:1: ONNX Runtime could not load its CUDA provider"
    ):
        check_placement(GPU, [CPU_PROVIDER], {CPU_PROVIDER: {"MatMul"}})


def test_heavy_work_left_to_the_cpu_is_refused_and_arithmetic_on_shapes_is_not() -> None:
    both = [CUDA_PROVIDER, CPU_PROVIDER]
    check_placement(
        GPU, both, {CUDA_PROVIDER: {"MatMul", "Attention"}, CPU_PROVIDER: {"Shape", "Concat"}}
    )
    with pytest.raises(
        ConfigError, match=r"--device cuda:1: .*no CUDA kernel for this model's Attention and"
    ):
        check_placement(
            GPU, both, {CUDA_PROVIDER: {"MatMul"}, CPU_PROVIDER: {"Shape", "Attention"}}
        )


def test_the_names_of_heavy_operators_are_those_that_onnx_runtime_reports(
    artifact: Artifact,
) -> None:
    """With other names the check would find nothing on any machine."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(artifact.graph_path(), options, providers=[CPU_PROVIDER])
    with pytest.raises(ConfigError, match="this model's Attention, MatMul, RotaryEmbedding and"):
        check_placement(GPU, [CUDA_PROVIDER, CPU_PROVIDER], assigned_operators(session))


class OnGpu(ort.InferenceSession):
    """A session on the CPU that describes itself as one on a GPU, and records its arguments."""

    made: ClassVar[list[tuple[ort.SessionOptions, Any]]] = []
    loaded = True

    def __init__(
        self, path: Path, options: ort.SessionOptions, providers: Any, **flags: Any
    ) -> None:
        assert flags == {"enable_fallback": 0}
        OnGpu.made.append((options, providers))
        super().__init__(path, options, providers=[CPU_PROVIDER], **flags)

    def get_providers(self) -> list[str]:
        return [CUDA_PROVIDER, CPU_PROVIDER] if self.loaded else [CPU_PROVIDER]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[OnGpu]:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(ort, "cuda_version", "0.0")  # there is no such library to count GPUs with
    monkeypatch.setattr(ort, "InferenceSession", OnGpu)
    monkeypatch.setattr(OnGpu, "made", [])
    return OnGpu


def test_on_a_gpu_the_trie_layout_comes_in_few_shapes_and_memory_is_planned(
    artifact: Artifact, gpu: type[OnGpu]
) -> None:
    for bucket in (BucketedGraph, None):
        graph = open_graph(
            artifact.graph_path(),
            runtime=Runtime.AUTO,
            precision=Precision.FP32,
            device="cuda:1",
            threads=1,
            device_memory_bytes=1 << 30,
            bucket=bucket,
        )
        assert isinstance(graph, BucketedGraph) == (bucket is not None)
        assert graph.runtime.endswith(CUDA_PROVIDER)
    assert [options.enable_mem_pattern for options, _ in gpu.made] == [True, False]
    assert [asked for _, asked in gpu.made] == [
        providers(GPU, 1 << 30, capture=True),
        providers(GPU, 1 << 30),
    ]
    assert not isinstance(
        open_graph(
            artifact.graph_path(),
            runtime=Runtime.AUTO,
            precision=Precision.FP32,
            device="cpu",
            threads=1,
            bucket=BucketedGraph,
        ),
        BucketedGraph,
    )


def test_an_unavailable_gpu_is_a_config_error_and_nothing_runs_on_the_cpu_instead(
    artifact: Artifact, gpu: type[OnGpu], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"--device cuda:0 cannot run this model: .*missing\.onnx"
    ):
        OnnxRuntimeGraph(tmp_path / "missing.onnx", device="cuda", threads=1)
    monkeypatch.setattr(gpu, "loaded", False)
    with pytest.raises(ConfigError, match="could not load its CUDA provider"):
        OnnxRuntimeGraph(artifact.graph_path(), device="cuda", threads=1)


def test_cuda_is_looked_for_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--device cuda needs onnxruntime-gpu"):
        OnnxRuntimeGraph(tmp_path / "missing.onnx", device="cuda:1", threads=1)


@pytest.mark.parametrize("version", ["1.28.0", "1.28.1.dev20260101", "1.31.1", "2.0.0", "1.100"])
def test_onnxruntime_gpu_with_all_kernels_is_accepted(version: str) -> None:
    check_cuda_version(version)


@pytest.mark.parametrize("version", ["1.24.4", "1.27.9", "1.3.0", "0.99", "unknown"])
def test_an_older_onnxruntime_gpu_is_refused_with_what_to_do(version: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_cuda_version(version)
    message = str(refused.value)
    assert f"onnxruntime-gpu is {version}; it must be at least 1.28" in message
    assert "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]>=1.28'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("num_devices", "reason", "environment", "problem"),
    [
        (1, "", {}, "sees cuda:0 only; nvidia-smi"),
        (1, "", {"CUDA_VISIBLE_DEVICES": "3"}, "sees cuda:0 only, because CUDA_VISIBLE_DEVICES is"),
        (0, "none", {"CUDA_VISIBLE_DEVICES": ""}, "because CUDA_VISIBLE_DEVICES is '' (none); "),
        (0, "the driver is old", {}, "sees no GPU (the driver is old); nvidia-smi"),
        (0, "", {}, "sees no GPU; nvidia-smi"),
    ],
)
def test_a_gpu_that_cuda_does_not_see_is_refused_with_what_it_sees(
    num_devices: int, reason: str, environment: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError, match="--device cuda:1: CUDA sees ") as refused:
        check_visible(GPU, num_devices, reason, environment)
    assert problem in str(refused.value)
    check_visible(GPU, 2, "", environment)


def test_two_packages_of_onnx_runtime_beside_one_another_are_named() -> None:
    message = _without_cuda(["onnxruntime", "onnxruntime-gpu"])
    assert "are both installed" in message
    assert "pip uninstall onnxruntime onnxruntime-gpu, then pip install" in message
    assert "needs onnxruntime-gpu" in _without_cuda(["onnxruntime"])


_LOAD_ON_A_GPU = """
import os, sys
import onnxruntime as ort
def preload_dlls():
    print(os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["ORT_CUDA_GEMM_OPTIONS"])
    sys.exit()
ort.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
ort.preload_dlls, ort.__version__ = preload_dlls, "1.31.1"
from pathlib import Path
from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph
OnnxRuntimeGraph(Path("graph.onnx"), device="cuda:0", threads=1)
"""


@pytest.mark.parametrize("users", [{}, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}])
def test_cuda_finds_its_environment_when_its_libraries_load(users: dict[str, str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in CUDA_ENVIRONMENT}
    ran = subprocess.run(
        [sys.executable, "-c", _LOAD_ON_A_GPU],
        env=inherited | users,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == list((CUDA_ENVIRONMENT | users).values())
