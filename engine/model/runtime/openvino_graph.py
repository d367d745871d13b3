"""OpenVINO on a CPU, which stays in this file. It reads the same ONNX files, and computes each node in the type it has there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray

from kwise.engine.model.precision import Precision
from kwise.engine.model.runtime.protocol import Shape
from kwise.errors import ConfigError


class OpenVinoGraph:
    """See `graph.open_graph`."""

    def __init__(self, path: Path, *, precision: Precision, device: str, threads: int) -> None:
        if device != "cpu":
            raise ConfigError(f"--runtime openvino runs on --device cpu, not {device!r}")
        core = openvino.Core()
        options: dict[str, Any] = {
            # "dynamic" takes each node's type from the graph. Without a word of ours it is bf16 throughout where the CPU has that.
            "INFERENCE_PRECISION_HINT": "f32" if precision is Precision.FP32 else "dynamic",
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
            "ENABLE_CPU_PINNING": False,  # as ONNX Runtime: the machine is shared
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled = core.compile_model(core.read_model(path), "CPU", options)
        except RuntimeError as error:  # all that it raises
            raise ConfigError(
                f"--runtime openvino cannot run this model: {str(error).strip().splitlines()[-1]}"
            ) from error
        self._request = compiled.create_infer_request()
        self.inputs: Mapping[str, Shape] = {
            node.any_name: tuple(
                size.get_length() if size.is_static else None for size in node.partial_shape
            )
            for node in compiled.inputs
        }
        self.runtime = f"openvino {openvino.__version__.split('-')[0]} CPU"

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs = self._request.infer(arrays, share_inputs=True)  # the outputs are copies
        return list(outputs.values())


def has_bf16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
