"""One model on one device: token sequences in, raw rewards out.

A session is synchronous. One thread runs passes, and another one may prepare the next pass
meanwhile. The graph's contract in the manifest and the layout say how to feed the graph; the
runtime says where it runs.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from kwise.engine.artifact.manifest import GraphContract
from kwise.engine.artifact.read import Artifact
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.layouts.protocol import Pass, Prepared
from kwise.engine.model.layouts.table import LAYOUTS
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.prefix_reuse import is_outdated
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import open_graph
from kwise.engine.model.slot_cache import SlotCache
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ArtifactError

__all__ = ["GraphSession", "Pass", "Session"]


def _nothing() -> None:
    pass


class Session(Protocol):
    """The model as the batcher sees it."""

    runtime: str  # for people: runtime, version, device
    precision: Precision
    prompt_cache: PromptCache

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        """Score a batch of at least one sequence."""

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = _nothing
    ) -> Callable[[], Pass]:
        """Do what `run` does before the graph runs, and return a function that does the rest.

        A thread may prepare a batch while another thread runs one.

        Args:
            started: called by the function that is returned when its graph is about to run. It is
                the time to prepare the next batch.
        """


class GraphSession:
    """A session that runs one of an artifact's graphs.

    Args:
        precision: selects the graph.
        runtime, device, threads, device_memory_bytes: see `open_graph`.
        prompt_cache_bytes: memory for keys and values of recent prompts, on the device if the graph
            keeps them there; None for a quarter of a GPU's free memory. The padded layout does not
            use it.

    Raises:
        ConfigError: the runtime is not installed, or the device is not available.
        ArtifactError: the artifact has no graph for the device, or the graph does not have the
        output that the manifest names.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        runtime: Runtime = Runtime.AUTO,
        precision: Precision = Precision.FP32,
        threads: int = 0,
        device: str = "cpu",
        device_memory_bytes: int = 0,
        prompt_cache_bytes: int | None = 0,
    ) -> None:
        manifest = artifact.manifest
        contract = _contract(artifact, precision, parse_devices(device)[0].kind)
        path = artifact.path / contract.file
        layout = LAYOUTS[manifest.layout]
        self._graph = open_graph(
            path,
            runtime=runtime,
            precision=precision,
            device=device,
            threads=threads,
            device_memory_bytes=device_memory_bytes,
            pool_bytes=prompt_cache_bytes,
            bucket=layout.bucket,
        )
        if contract.reward_output not in self._graph.outputs:
            raise ArtifactError(f"{path}: the graph has no output {contract.reward_output!r}")
        self.layout = layout(manifest, contract, self._graph.inputs)
        self.precision = precision
        self.prompt_cache = (
            SlotCache(self._graph.num_slots, self._graph.slot_bytes)
            if self._graph.num_slots
            else PromptCache(prompt_cache_bytes or 0)
        )
        self.runtime = self._graph.runtime

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        """Score a batch of at least one sequence. Raises what the runtime raises."""
        return self.prepare(batch)()

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = _nothing
    ) -> Callable[[], Pass]:
        prepared: Prepared | None = self._prepare(batch)

        def run() -> Pass:
            nonlocal prepared
            assert prepared is not None
            reuse = prepared.reuse
            # A pass that ran since may have cached a prompt that this batch would compute again, or
            # failed to cache one that it would reuse.
            if reuse is not None and is_outdated(reuse, self.prompt_cache):
                reuse = prepared = None  # frees the slots that it has reserved
                prepared = self._prepare(batch)
            return prepared.run(started)

        return run

    def _prepare(self, batch: Sequence[EncodedSequence]) -> Prepared:
        return self.layout.prepare(self._graph, batch, self.prompt_cache)

    def inputs(self, batch: Sequence[EncodedSequence]) -> dict[str, NDArray[Any]]:
        """Return the graph's inputs for the batch, with nothing reused and nothing to cache."""
        return self.layout.inputs(batch)


def _contract(artifact: Artifact, precision: Precision, kind: Kind) -> GraphContract:
    """Return the contract of the graph that a kind of device runs."""
    manifest = artifact.manifest
    if kind is Kind.CPU or not LAYOUTS[manifest.layout].bucket:
        return manifest.graphs[precision]
    if precision not in manifest.cuda_graphs:
        raise ArtifactError(
            f"{artifact.path}: the artifact has no graph in {precision.value} for CUDA"
        )
    return manifest.cuda_graphs[precision]
