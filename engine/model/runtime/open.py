"""Open a model's graph with a runtime. Only the selected runtime is imported."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from kwise.engine.model.cpu import available_cpus
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.protocol import Graph
from kwise.engine.precision import Precision
from kwise.errors import ArtifactError, ConfigError
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
        ArtifactError: the weights are behind a link that the runtime does not follow.
    """
    threads = threads or available_cpus()
    option = f"--runtime {runtime.value}"
    if runtime is Runtime.OPENVINO:
        _check_installed("openvino", "openvino", option)
        from kwise.engine.model.runtime.openvino_graph import OpenVinoGraph

        with _explained_links(path, path.parent):
            return OpenVinoGraph(path, precision=precision, device=device, threads=threads)
    _check_installed("onnxruntime", "engine-gpu" if device != "cpu" else "engine", option)
    from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph

    with _explained_links(path, path.parent, path.resolve().parent):
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
    _check_installed("openvino", "openvino", "on a CPU it")
    from kwise.engine.model.runtime.openvino_graph import has_bf16

    return has_bf16()


@contextmanager
def _explained_links(graph: Path, *allowed: Path) -> Iterator[None]:
    """Say so if a runtime cannot open a graph because its weights are in another directory.

    Runtimes refuse such weights, so that a graph cannot read any file of the machine.

    Args:
        allowed: the directories that the runtime reads weights from. A download of Hugging Face
            Hub has links to the graph and to its weights, which are in one directory.

    Raises:
        ArtifactError: a file of weights is a link to another directory.
    """
    try:
        yield
    except (ArtifactError, ConfigError) as error:
        directories = [directory.resolve() for directory in allowed]
        for weights in sorted(graph.parent.glob("*.data")):
            target = weights.resolve()
            if not any(map(target.is_relative_to, directories)):
                raise ArtifactError(
                    f"{weights}: it is a link to {target}, and this runtime reads weights only "
                    f"from the artifact itself: copy it with cp -rL {graph.parent} COPY"
                ) from error
        raise


def _check_installed(package: str, extra: str, subject: str) -> None:
    """Check that a package of a runtime can be imported.

    Args:
        extra: the extra of kwise that installs it.
        subject: what needs the package, for the message.

    Raises:
        ConfigError: it cannot.
    """
    spec = find_spec(package)
    if spec is None:
        raise ConfigError(f"{subject} needs the package {package}: {how_to_install(extra)}")
    # `import` accepts a folder without __init__.py, and finds nothing in it. That is what is left
    # if two packages share a folder, as onnxruntime and onnxruntime-gpu do, and one is uninstalled.
    if spec.origin is None:
        (folder, *_) = spec.submodule_search_locations or [""]
        raise ConfigError(
            f"{subject} needs the package {package}, of which an uninstall left only parts in "
            f"{folder}: delete that folder, pip uninstall each variant of {package} that pip list "
            f"shows, then {how_to_install(extra)}"
        )
