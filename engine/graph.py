"""A model's graph on a device: named arrays in, arrays out. Of the runtimes that can run it, the one chosen is imported."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from kwise.engine.config import Runtime
from kwise.engine.errors import ConfigError

Shape = tuple[int | None, ...]
"""Of an input; None where it varies."""


class Graph(Protocol):
    """What a session needs of a runtime. Used by one thread."""

    runtime: str  # for people: runtime, version, device
    inputs: Mapping[str, Shape]

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the graph's order; theirs to keep. Raises what the runtime raises, for want of memory for instance."""


def open_graph(path: Path, *, runtime: Runtime, device: str, threads: int) -> Graph:
    """The graph of an ONNX file, ready to run.

    Args:
        device: "cpu", "cuda" or "cuda:N"; of OpenVINO "cpu".
        threads: of the runtime, 0 for one per core.

    Raises:
        ConfigError: the runtime is not installed, has no such device, or cannot run the graph.
    """
    package, extra = ("openvino", "openvino") if runtime is Runtime.OPENVINO else ("onnxruntime", "engine")
    if find_spec(package) is None:
        raise ConfigError(f"--runtime {runtime.value} needs the package {package}: pip install 'kwise[{extra}]'")
    if runtime is Runtime.OPENVINO:
        from kwise.engine.openvino_graph import OpenVinoGraph

        return OpenVinoGraph(path, device=device, threads=threads)
    from kwise.engine.onnxruntime_graph import OnnxRuntimeGraph

    return OnnxRuntimeGraph(path, device=device, threads=threads)
