"""A model's graph on a device: named arrays in, arrays out. Of the runtimes that can run it, the one chosen is imported."""

from importlib.util import find_spec
from pathlib import Path

from kwise.engine.model.precision import Precision
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.protocol import Graph
from kwise.errors import ConfigError


def open_graph(
    path: Path,
    *,
    runtime: Runtime,
    precision: Precision,
    device: str,
    threads: int,
    device_memory_bytes: int = 0,
    trie: bool = False,
) -> Graph:
    """The graph of an ONNX file, ready to run.

    Args:
        precision: of the file.
        device: "cpu", "cuda" or "cuda:N"; of OpenVINO "cpu".
        threads: of the runtime, 0 for one per core.
        device_memory_bytes: of a GPU, for weights and activations; 0 for no limit.
        trie: the layout is the trie's; on a GPU its inputs are padded to few shapes (see buckets.py).

    Raises:
        ConfigError: the runtime is not installed, has no such device, or cannot run the graph.
    """
    package, extra = (
        ("openvino", "openvino") if runtime is Runtime.OPENVINO else ("onnxruntime", "engine")
    )
    if find_spec(package) is None:
        raise ConfigError(
            f"--runtime {runtime.value} needs the package {package}: pip install 'kwise[{extra}]'"
        )
    if runtime is Runtime.OPENVINO:
        from kwise.engine.model.runtime.openvino_graph import OpenVinoGraph

        return OpenVinoGraph(path, precision=precision, device=device, threads=threads)
    from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph

    graph = OnnxRuntimeGraph(
        path, device=device, threads=threads, memory_bytes=device_memory_bytes, few_shapes=trie
    )
    if device == "cpu" or not trie:
        return graph
    from kwise.engine.model.shape_buckets import BucketedGraph

    return BucketedGraph(graph)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bf16 (AVX512-BF16, AMX), as far as OpenVINO tells, which alone has the kernels.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    if find_spec("openvino") is None:
        raise ConfigError("on a CPU it needs the package openvino: pip install 'kwise[openvino]'")
    from kwise.engine.model.runtime.openvino_graph import has_bf16

    return has_bf16()
