"""Run graphs with ONNX Runtime on a CPU or on CUDA.

Only this file and index_buffer.py import it.

On CUDA the index arrays are copied to the device once per pass, in one piece, into a buffer that
stays there. Only the rewards, and the keys and values that the prompt cache stores, come back. That
cache is in host memory also with a GPU, because ONNX Runtime's Python API can neither slice nor
join tensors on a device; docs/gpu.md has what this costs, and why CUDA graphs are not used.
"""

import os
import re
from collections.abc import Collection, Container, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.model.devices import Device, Kind, parse_devices
from kwise.engine.model.runtime.index_buffer import IndexBuffers, join_arrays
from kwise.engine.model.runtime.protocol import Shape
from kwise.errors import ArtifactError, ConfigError
from kwise.libraries.errors import library_errors
from kwise.libraries.extras import how_to_install

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# The operators that do the work. One of them on the CPU costs more than the GPU saves. Other nodes,
# such as arithmetic on shapes, belong on the CPU.
_HEAVY = {"Attention", "MatMul", "Gemm", "RotaryEmbedding"}
# 1.24 has no CUDA kernel for Attention, 1.25 none for fp32 with grouped heads, and 1.27 aligns a
# causal mask with nonpad_kv_seqlen at the upper left.
_MIN_CUDA_VERSION = (1, 28)
# Read by the CUDA libraries when they start. With the small workspace cuBLAS does not divide a
# matmul's sum among thread blocks (split-K), so the order of summation does not depend on the
# number of rows. Option 2 of ONNX Runtime keeps partial sums of fp16 matmuls in fp32.
CUDA_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "ORT_CUDA_GEMM_OPTIONS": "2"}


class OnnxRuntimeGraph:
    """A graph in ONNX Runtime; has the `Graph` interface.

    Args:
        path, device, threads: see `open_graph`.
        memory_bytes: the GPU's memory for weights and activations; 0 for no limit.
        few_shapes: input shapes repeat, so memory can be planned.

    Raises:
        ConfigError: the device is not available, or is a GPU that cannot run the graph.
        ArtifactError: ONNX Runtime cannot run the graph on a CPU.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str,
        threads: int,
        memory_bytes: int = 0,
        few_shapes: bool = False,
    ) -> None:
        (place,) = parse_devices(device)
        cuda = place.kind is Kind.CUDA
        options = ort.SessionOptions()
        # With a GPU the CPU only does arithmetic on shapes, which does not need a pool of threads
        # per device.
        options.intra_op_num_threads = 1 if cuda else threads
        options.log_severity_level = 4  # an error is raised as well
        if not sums_exactly(_cpu_flags()):
            # int8 products must be added up exactly on every CPU, and the faster kernels for x86
            # without VNNI saturate at 16 bits. With VNNI the fast kernels are exact and 2.4 times
            # as fast, but this option would exclude them too.
            options.add_session_config_entry("session.x64quantprecision", "1")
        # Computes each tensor shortly before it is used: SmolLM2 takes 20 KB of activations per row
        # instead of 65 KB, at the same speed.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        # A memory plan is never freed, so it pays only for shapes that repeat.
        options.enable_mem_pattern = cuda and few_shapes
        if cuda:
            _find_cuda()
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        problem = f"--device {place.name} cannot run this model"
        with library_errors(problem, raises=ConfigError if cuda else ArtifactError):
            # Without `enable_fallback=0` ONNX Runtime tries the CPU if CUDA fails, and prints a
            # line.
            self._session = ort.InferenceSession(
                path, options, providers=providers(place, memory_bytes), enable_fallback=0
            )
        self._session.disable_fallback()
        if cuda:
            check_placement(place, self._session.get_providers(), _assigned(self._session))
        self._bound = BoundRun(self._session, place) if cuda else None
        self.inputs: Mapping[str, Shape] = {
            node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
            for node in self._session.get_inputs()
        }
        self.outputs: Collection[str] = [node.name for node in self._session.get_outputs()]
        self.runtime = f"onnxruntime {ort.__version__} {self._session.get_providers()[0]}"

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._bound is not None:
            return self._bound.run(arrays)
        return dict(zip(self.outputs, self._session.run(None, arrays), strict=True))


class BoundRun:
    """Runs a session on a device by IO binding. A pass ends before `run` returns."""

    def __init__(self, session: ort.InferenceSession, device: Device) -> None:
        self._session = session
        self._device = device
        self._outputs = [node.name for node in session.get_outputs()]
        self._index_buffers = IndexBuffers(device)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return copies of all outputs on the host, by name."""
        binding = self._session.io_binding()
        indices: dict[str, NDArray[np.int64]] = {}
        for name, array in arrays.items():
            if array.dtype == np.int64 and array.size:
                indices[name] = array
            else:
                binding.bind_ortvalue_input(name, self._on_device(array))
        self._index_buffers.bind(binding, join_arrays(indices))
        for name in self._outputs:
            # Computed on the device and copied at the end of the pass. `present.*` has no rows if
            # nothing is to be cached.
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))

    def _on_device(self, array: NDArray[Any]) -> ort.OrtValue:
        """Copy cached states, which are large and seldom of the same shape, to the device."""
        array = np.ascontiguousarray(array)
        if not array.size:  # there is nothing to copy
            return ort.OrtValue.ortvalue_from_numpy(array)
        return ort.OrtValue.ortvalue_from_numpy(array, self._device.kind.value, self._device.index)


def providers(device: Device, memory_bytes: int) -> list[str | tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's execution providers for the device, in order of preference.

    Args:
        memory_bytes: a GPU's memory for weights and activations; 0 for no limit. CUDA's own context
            and cuBLAS's workspaces take about 500 MB more.
    """
    if device.kind is Kind.CPU:
        return [_CPU]
    # TF32 rounds the factors of an fp32 product to 10 bits: rewards would change by a thousandth,
    # and parity requires 1e-4.
    options = {"device_id": str(device.index), "use_tf32": "0"}
    if memory_bytes:
        # The default strategy doubles the arena at each step, so it would fail at half of the
        # limit.
        options |= {"gpu_mem_limit": str(memory_bytes), "arena_extend_strategy": "kSameAsRequested"}
    # The CPU is second, for arithmetic on shapes. `check_placement` refuses anything more.
    return [(_CUDA, options), _CPU]


def check_cuda_version(version: str) -> None:
    """Check that this onnxruntime-gpu has the CUDA kernels that kwise needs.

    Raises:
        ConfigError: it is too old, or its version cannot be read.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _MIN_CUDA_VERSION:
        minimum = ".".join(map(str, _MIN_CUDA_VERSION))
        raise ConfigError(
            f"--device cuda: onnxruntime-gpu is {version}; it must be at least {minimum}, because "
            "older ones lack CUDA kernels of kwise's graphs: "
            f"pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]>={minimum}'"
        )


def set_cuda_environment(environment: MutableMapping[str, str]) -> None:
    """Set the variables of `CUDA_ENVIRONMENT` that the user has not set."""
    for name, value in CUDA_ENVIRONMENT.items():
        environment.setdefault(name, value)


def check_placement(
    device: Device, session_providers: Iterable[str], assigned: Mapping[str, Iterable[str]]
) -> None:
    """Check that the session runs on the GPU.

    Args:
        assigned: the operators that each provider runs.

    Raises:
        ConfigError: the session does not have CUDA (ONNX Runtime drops a provider whose libraries
            do not load and only logs it), or heavy operators were left to the CPU.
    """
    if _CUDA not in session_providers:
        raise ConfigError(
            f"--device {device.name}: ONNX Runtime could not load its CUDA provider and would run "
            "on the CPU; it needs a driver, CUDA and cuDNN of matching versions; "
            f"{how_to_install('engine-gpu')} installs the last two"
        )
    if left := sorted(_HEAVY.intersection(assigned.get(_CPU, ()))):
        raise ConfigError(
            f"--device {device.name}: onnxruntime {ort.__version__} has no CUDA kernel for this "
            f"model's {', '.join(left)} and would run it on the CPU; try a newer onnxruntime-gpu "
            "or another --precision"
        )


def _assigned(session: ort.InferenceSession) -> dict[str, set[str]]:
    """Return the types of the operators that each execution provider runs."""
    assigned: dict[str, set[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        assigned.setdefault(part.ep_name, set()).update(node.op_type for node in part.get_nodes())
    return assigned


def sums_exactly(cpu_flags: Container[str]) -> bool:
    """Return whether ONNX Runtime's fast kernels add up products of bytes in 32 bits.

    They do so with VNNI. A virtual machine may report AVX-512 without its VNNI; then ONNX Runtime
    takes the inexact AVX-512 kernels even if AVX2's VNNI is present.
    """
    return "avx512_vnni" in cpu_flags or ("avx_vnni" in cpu_flags and "avx512f" not in cpu_flags)


def _cpu_flags() -> frozenset[str]:
    """Return the CPU's features by Linux's names; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


def _find_cuda() -> None:
    if _CUDA not in ort.get_available_providers():
        raise ConfigError(
            "--device cuda needs onnxruntime-gpu: in an environment of its own, "
            f"{how_to_install('engine-gpu')}"
        )
    check_cuda_version(ort.__version__)
    set_cuda_environment(os.environ)
    # The extra installs the libraries inside Python packages, where the loader does not search.
    ort.preload_dlls()
