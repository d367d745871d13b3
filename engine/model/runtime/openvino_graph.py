"""Run graphs with OpenVINO on a CPU. No other file imports OpenVINO.

It reads the same ONNX files as ONNX Runtime and computes each node in the type that the file gives
it.
"""

# ruff: noqa: E402 - a line must come before the imports

import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# OpenVINO's converter, which its package imports if it is there, sends telemetry and writes an
# identifier of the machine below the home directory. Nothing here converts models.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
import openvino
from numpy.typing import NDArray

from kwise.engine.model.runtime.protocol import Arrays, Shape
from kwise.engine.precision import Precision
from kwise.errors import ConfigError


class OpenVinoGraph:
    """A graph in OpenVINO; has the `Graph` interface. See `open_graph` for the arguments."""

    def __init__(self, path: Path, *, precision: Precision, device: str, threads: int) -> None:
        if device != "cpu":
            raise ConfigError(f"--runtime openvino runs on --device cpu, not {device!r}")
        core = openvino.Core()
        options: dict[str, Any] = {
            # "dynamic" takes each node's type from the file. By default OpenVINO would compute
            # everything in bf16 on a CPU that has it.
            "INFERENCE_PRECISION_HINT": "f32" if precision is Precision.FP32 else "dynamic",
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
            "ENABLE_CPU_PINNING": False,  # like ONNX Runtime: the machine is shared
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled = core.compile_model(core.read_model(path), "CPU", options)
        except RuntimeError as error:  # the only type that OpenVINO raises
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"--runtime openvino cannot run this model: {reason}") from error
        self._request = compiled.create_infer_request()
        self.inputs: Mapping[str, Shape] = {
            node.any_name: tuple(
                size.get_length() if size.is_static else None for size in node.partial_shape
            )
            for node in compiled.inputs
        }
        # A tensor that several nodes pass on unchanged has all of their names.
        self._names: list[set[str]] = [node.names for node in compiled.outputs]
        self.outputs: Collection[str] = set().union(*self._names)
        self.num_slots = self.slot_bytes = 0
        self.runtime = f"openvino {openvino.__version__.split('-')[0]} CPU"

    def prepare(self, arrays: Arrays) -> Callable[[], dict[str, NDArray[Any]]]:
        return partial(self.run, arrays)

    def run(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        outputs = self._request.infer(arrays, share_inputs=True)  # the outputs are copies
        pairs = zip(self._names, outputs.values(), strict=True)
        return {name: array for names, array in pairs for name in names}


def has_bf16() -> bool:
    """Return whether this CPU multiplies in bf16."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
