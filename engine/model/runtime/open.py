"""Open a model's graph with a runtime. Only the selected runtime is imported."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from kwise.engine.model.cpu import available_cpus
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.protocol import Graph
from kwise.engine.precision import Precision
from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install


def open_graph(
    path: Path,
    *,
    runtime: Runtime,
    precision: Precision,
    device: str,
    threads: int,
    device_memory_bytes: int = 0,
    pool_bytes: int | None = 0,
    bucket: Callable[[Graph], Graph] | None = None,
) -> Graph:
    """Load an ONNX file, ready to run.

    Args:
        precision: the precision of the file.
        device: "cpu", "cuda" or "cuda:N"; OpenVINO takes "cpu" only.
        threads: the runtime's threads; 0 for one per CPU that this process may use.
        device_memory_bytes: a GPU's memory for weights and activations; 0 for no limit.
        pool_bytes: memory for the graph's pools of cached keys and values, if it has any; None for
            a quarter of a GPU's free memory.
        bucket: wraps the graph on a GPU so that its inputs have few shapes, as `BucketedGraph`
            does; None for no wrapper.

    Raises:
        ConfigError: the runtime is not installed, does not have the device, or cannot run the
        graph.
    """
    threads = threads or available_cpus()
    use_openvino = runtime is Runtime.OPENVINO
    package, extra = ("openvino", "openvino") if use_openvino else ("onnxruntime", "engine")
    if find_spec(package) is None:
        raise ConfigError(
            f"--runtime {runtime.value} needs the package {package}: {how_to_install(extra)}"
        )
    if use_openvino:
        from kwise.engine.model.runtime.openvino_graph import OpenVinoGraph

        return OpenVinoGraph(path, precision=precision, device=device, threads=threads)
    from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph

    graph = OnnxRuntimeGraph(
        path,
        device=device,
        threads=threads,
        memory_bytes=device_memory_bytes,
        pool_bytes=pool_bytes,
        few_shapes=bucket is not None,
    )
    return graph if bucket is None or device == "cpu" else bucket(graph)


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies in bf16 (AVX512-BF16 or AMX).

    OpenVINO answers this, because it alone has kernels for it.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    if find_spec("openvino") is None:
        raise ConfigError(f"on a CPU it needs the package openvino: {how_to_install('openvino')}")
    from kwise.engine.model.runtime.openvino_graph import has_bf16

    return has_bf16()
