"""Run graphs with ONNX Runtime on a CPU or on CUDA.

cuda.py has what concerns CUDA's provider, and bound_run.py runs passes there.
"""

import logging
from collections.abc import Callable, Collection, Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.model.devices import Device, Kind, parse_devices
from kwise.engine.model.runtime.bound_run import BoundRun
from kwise.engine.model.runtime.capture_gate import CAPTURE_GATE
from kwise.engine.model.runtime.cuda import (
    assigned_operators,
    check_placement,
    find_cuda,
    providers,
)
from kwise.engine.model.runtime.pools import Pools, is_pool
from kwise.engine.model.runtime.protocol import Arrays, Shape
from kwise.errors import ArtifactError, ConfigError
from kwise.libraries.errors import library_errors

_LOG = logging.getLogger(__name__)


class OnnxRuntimeGraph:
    """A graph in ONNX Runtime; has the `Graph` interface.

    Args:
        path, device, threads: see `open_graph`.
        memory_bytes: the GPU's memory for weights and activations; 0 for no limit.
        pool_bytes: see `open_graph`.
        few_shapes: input shapes repeat, so memory can be planned, and passes can be captured as
            CUDA graphs.

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
        pool_bytes: int | None = 0,
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
            find_cuda(place)
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        problem = f"--device {place.name} cannot run this model"
        raises = ConfigError if cuda else ArtifactError
        with library_errors(problem, raises=raises), CAPTURE_GATE.loading():
            self._session, capture = _open_session(
                path, options, place, memory_bytes, cuda and few_shapes
            )
        self._session.disable_fallback()
        if cuda:
            check_placement(place, self._session.get_providers(), assigned_operators(self._session))
        problem = f"--prompt-cache-bytes: {place.name} cannot hold the keys and values"
        with library_errors(problem, raises=ConfigError), CAPTURE_GATE.loading():
            pools = Pools.of(self._session, place, pool_bytes)
        self.num_slots = pools.num_slots if pools else 0
        self.slot_bytes = pools.slot_bytes if pools else 0
        self._bound = (
            BoundRun(self._session, place, pools, capture=capture) if cuda or pools else None
        )
        self.inputs: Mapping[str, Shape] = {
            node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
            for node in self._session.get_inputs()
            if not is_pool(node.name)
        }
        self.outputs: Collection[str] = [
            node.name for node in self._session.get_outputs() if not is_pool(node.name)
        ]
        self.runtime = f"onnxruntime {ort.__version__} {self._session.get_providers()[0]}"

    def __del__(self) -> None:
        # CUDA refuses to free memory while another thread captures a graph. The new model of a
        # reload may do so when the old one goes.
        if getattr(self, "_bound", None) is not None:
            with CAPTURE_GATE.loading():
                self._bound = None
                del self._session

    def run(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        return self.prepare(arrays)()

    def prepare(self, arrays: Arrays) -> Callable[[], dict[str, NDArray[Any]]]:
        return self._bound.prepare(arrays) if self._bound else partial(self._run, arrays)

    def _run(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, self._session.run(None, arrays), strict=True))


def _open_session(
    path: Path, options: ort.SessionOptions, device: Device, memory_bytes: int, capture: bool
) -> tuple[ort.InferenceSession, bool]:
    """Return the session, and whether its passes can be captured as CUDA graphs.

    Args:
        capture: they should be. ONNX Runtime refuses a graph in which the CPU does more than
            arithmetic on shapes.
    """

    def open_with(*, captures: bool) -> ort.InferenceSession:
        chosen = providers(device, memory_bytes, capture=captures)
        # Without `enable_fallback=0` ONNX Runtime tries the CPU if CUDA fails, and prints a line.
        return ort.InferenceSession(path, options, providers=chosen, enable_fallback=0)

    if not capture:
        return open_with(captures=False), False
    try:
        return open_with(captures=True), True
    except Exception as error:  # noqa: BLE001 - ONNX Runtime may raise anything
        reason = str(error).partition("\n")[0]
    # If CUDA graphs are not to blame, this raises too.
    session = open_with(captures=False)
    _LOG.warning("%s: no CUDA graphs for this model: %s", device.name, reason)
    return session, False


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
