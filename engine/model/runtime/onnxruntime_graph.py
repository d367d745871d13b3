"""ONNX Runtime, which stays in this file: on CPU in fp32, the reference, and int8; or on CUDA.

On CUDA the index arrays go to the device once a pass, into buffers that stay there, and of the outputs only those that the
session reads come back: the rewards, and the keys and values that the prompt cache keeps. That cache is in host memory on a
GPU too, since ONNX Runtime's Python can neither cut nor join tensors on a device. So a known prompt's states are copied there
again: of SmolLM2 46 KB a token, by arithmetic 2 µs on PCIe 4, which is about what a large GPU takes to compute them; of larger
models less in proportion. With --prompt-cache-bytes 0 nothing but ids goes in and nothing but rewards comes out.

CUDA graphs are not used. A captured graph is of one shape and one set of addresses, the session would hold one for each of
its shapes; and capture allows no node on the CPU, where ONNX Runtime puts the arithmetic on shapes that this graph's Reshape and
Expand nodes need.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.model.devices import Device, Kind, parse_devices
from kwise.engine.model.runtime.protocol import Shape
from kwise.errors import ConfigError

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Where the work is: one of them on the CPU costs more than a GPU saves. Arithmetic on shapes belongs there.
_HEAVY = {"Attention", "MatMul", "Gemm", "RotaryEmbedding"}
# Buffers on the device: some 20 inputs of each shape. Shapes are few, see buckets.py, but in the padded layout.
_MAX_BUFFERS = 4096


class OnnxRuntimeGraph:
    """See `graph.open_graph`. few_shapes: inputs come in shapes that repeat, so that memory can be planned."""

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
        # Beside a GPU there is arithmetic on shapes, which is not worth a pool of threads for each device.
        options.intra_op_num_threads = 1 if cuda else threads
        options.log_severity_level = 3
        if not sums_exactly(_cpu_flags()):
            # int8 is summed up exactly on every CPU: on x86 without VNNI the faster kernels saturate at 16 bits. With it they are
            # exact and 2.4 times as fast, but this option would rule them out there too.
            options.add_session_config_entry("session.x64quantprecision", "1")
        # Each tensor is used soon after it is made: 20 KB of activations a row of SmolLM2 instead of 65, at the same speed.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        # Planned memory is for shapes that come again, and each plan is kept for ever.
        options.enable_mem_pattern = cuda and few_shapes
        if cuda:
            _find_cuda()
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            # Without `enable_fallback=0` what CUDA cannot do would be tried on the CPU, and a line printed.
            self._session = ort.InferenceSession(
                path, options, providers=providers(place, memory_bytes), enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's own have no other base
            if not cuda:
                raise
            raise ConfigError(
                f"--device {place.name} cannot run this model: {_first_line(error)}"
            ) from error
        self._session.disable_fallback()
        if cuda:
            check_placement(place, self._session.get_providers(), _assigned(self._session))
        self._bound = BoundRun(self._session, place) if cuda else None
        self.inputs: Mapping[str, Shape] = {
            node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
            for node in self._session.get_inputs()
        }
        self.runtime = f"onnxruntime {ort.__version__} {self._session.get_providers()[0]}"

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if self._bound is not None:
            return self._bound.run(arrays)
        outputs: list[NDArray[Any]] = self._session.run(None, arrays)
        return outputs


class BoundRun:
    """Passes of a session on a device by IO binding, with buffers for its inputs that are made once for each shape."""

    def __init__(self, session: ort.InferenceSession, device: Device) -> None:
        self._session = session
        self._device = device
        self._outputs = [node.name for node in session.get_outputs()]
        self._buffers: dict[tuple[str, tuple[int, ...]], ort.OrtValue] = {}

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """All outputs, in the graph's order, on the host; copies."""
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, self._on_device(name, array))
        for name in self._outputs:
            # Made on the device and copied at the end of the pass. `present.*` has no rows where nothing is to be kept.
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        outputs: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return outputs

    def _on_device(self, name: str, array: NDArray[Any]) -> ort.OrtValue:
        """A pass has ended when `run` returns, so its buffers may be written again."""
        array = np.ascontiguousarray(array)
        if not array.size:  # nothing to copy, and no address to copy it to
            return ort.OrtValue.ortvalue_from_numpy(array)
        kind, index = self._device.kind.value, self._device.index
        if array.dtype != np.int64:  # states of a prompt: large, and seldom of the same shape
            return ort.OrtValue.ortvalue_from_numpy(array, kind, index)
        key = name, array.shape
        if key not in self._buffers:
            if len(self._buffers) >= _MAX_BUFFERS:
                self._buffers.clear()
            self._buffers[key] = ort.OrtValue.ortvalue_from_shape_and_type(
                array.shape, array.dtype.type, kind, index
            )
        self._buffers[key].update_inplace(array)
        return self._buffers[key]


def providers(device: Device, memory_bytes: int) -> list[str | tuple[str, dict[str, str]]]:
    """What runs a graph on the device, in the order of preference. memory_bytes: of a GPU, for weights and activations; 0 for
    no limit. CUDA's own context and cuBLAS's workspaces, some 500 MB, come on top."""
    if device.kind is Kind.CPU:
        return [_CPU]
    # TF32 rounds the factors of an fp32 product to 10 bits: rewards would move by a thousandth where parity is 1e-4.
    options = {"device_id": str(device.index), "use_tf32": "0"}
    if memory_bytes:
        # The other strategy doubles the arena at each step, and so fails at half of the limit.
        options |= {"gpu_mem_limit": str(memory_bytes), "arena_extend_strategy": "kSameAsRequested"}
    # CPU second: shape arithmetic runs there; `check_placement` tells whether more does.
    return [(_CUDA, options), _CPU]


def check_placement(
    device: Device, session_providers: Iterable[str], assigned: Mapping[str, Iterable[str]]
) -> None:
    """assigned: the operators that each provider runs.

    Raises:
        ConfigError: the session has no CUDA after all (ONNX Runtime leaves a provider out whose libraries do not load, with a
            line in its log), or heavy work was left to the CPU.
    """
    if _CUDA not in session_providers:
        raise ConfigError(
            f"--device {device.name}: ONNX Runtime could not load its CUDA provider and would run on the CPU; it needs a driver, "
            "CUDA and cuDNN of its versions: pip install 'kwise[engine-gpu]' brings the last two"
        )
    if left := sorted(_HEAVY.intersection(assigned.get(_CPU, ()))):
        raise ConfigError(
            f"--device {device.name}: onnxruntime {ort.__version__} has no CUDA kernel for this model's {', '.join(left)} and "
            "would run it on the CPU; a newer onnxruntime-gpu, or another --precision, may have one"
        )


def _assigned(session: ort.InferenceSession) -> dict[str, set[str]]:
    assigned: dict[str, set[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        assigned.setdefault(part.ep_name, set()).update(node.op_type for node in part.get_nodes())
    return assigned


def sums_exactly(cpu_flags: Container[str]) -> bool:
    """Whether ONNX Runtime's fast kernels sum up products of bytes in 32 bits. Where AVX-512 is without its VNNI, as a virtual
    machine may show it, they are AVX-512's even if AVX2's VNNI is there."""
    return "avx512_vnni" in cpu_flags or ("avx_vnni" in cpu_flags and "avx512f" not in cpu_flags)


def _cpu_flags() -> frozenset[str]:
    """As Linux names them; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


def _find_cuda() -> None:
    if _CUDA not in ort.get_available_providers():
        raise ConfigError(
            "--device cuda needs onnxruntime-gpu: install 'kwise[engine-gpu]' in an environment of its own"
        )
    # The libraries that the extra installs lie in Python packages, where the loader does not look.
    ort.preload_dlls()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
