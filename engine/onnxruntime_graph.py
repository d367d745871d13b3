"""ONNX Runtime, which stays in this file: on CPU in fp32, the reference, or on CUDA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.errors import ConfigError
from kwise.engine.graph import Shape


class OnnxRuntimeGraph:
    """See `graph.open_graph`."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Each tensor is used soon after it is made: 20 KB of activations a row of SmolLM2 instead of 65, at the same speed.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False  # no two batches have the same shapes
        self._session = ort.InferenceSession(path, options, providers=_providers(device))
        self.inputs: Mapping[str, Shape] = {
            node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
            for node in self._session.get_inputs()
        }
        self.runtime = f"onnxruntime {ort.__version__} {self._session.get_providers()[0]}"

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._session.run(None, arrays)
        return outputs


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return ["CPUExecutionProvider"]
    if kind != "cuda" or not (index or "0").isdigit():
        raise ConfigError(f"--device is {device!r}; it must be cpu, cuda or cuda:N")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ConfigError("--device cuda needs onnxruntime-gpu: install 'kwise[engine-gpu]' in an environment of its own")
    # CPU second: shape arithmetic runs there, and the golden check catches a model that fell back whole.
    return [("CUDAExecutionProvider", {"device_id": index or "0"}), "CPUExecutionProvider"]
