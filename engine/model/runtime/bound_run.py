"""Run a session on a device by IO binding.

The index arrays are copied to the device once per pass, in one piece, into a buffer that stays
there. Only the rewards come back: the keys and values of cached prompts stay in pools. Passes whose
shapes repeat are replayed as CUDA graphs.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.model.devices import Device
from kwise.engine.model.runtime.capture_gate import CAPTURE_GATE
from kwise.engine.model.runtime.captured_graphs import CapturedGraphs, run_options
from kwise.engine.model.runtime.cuda import select_device
from kwise.engine.model.runtime.index_buffer import IndexBuffers, JoinedArrays, join_arrays
from kwise.engine.model.runtime.pools import Pools, is_pool
from kwise.engine.model.runtime.protocol import Arrays

Outputs = dict[str, NDArray[Any]]


class BoundRun:
    """Runs a session on a device by IO binding. All inputs are int64 but the pools.

    Args:
        capture: replay passes whose shapes repeat as CUDA graphs.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: Device,
        pools: Pools | None = None,
        *,
        capture: bool = False,
    ) -> None:
        self._session = session
        self._device = device
        self._pools = pools
        self._outputs = [node.name for node in session.get_outputs() if not is_pool(node.name)]
        self._index_buffers = IndexBuffers(device)
        self._graphs = CapturedGraphs(device) if capture else None
        self._without_graph = run_options(-1)

    def prepare(self, arrays: Arrays) -> Callable[[], Outputs]:
        """Join the index arrays, and return a function that copies all inputs and runs the pass.

        The copies wait until then, because the buffers on the device belong to the pass that runs.
        """
        indices = {name: array for name, array in arrays.items() if array.size}
        empty = {name: array for name, array in arrays.items() if not array.size}
        run = partial(self._launch, join_arrays(indices), empty)
        return run if self._graphs is None else partial(self._replay, self._graphs, *run.args)

    def _replay(self, graphs: CapturedGraphs, indices: JoinedArrays, empty: Arrays) -> Outputs:
        """Replay the graph of these shapes; capture it if that is due; else launch the kernels."""
        select_device(self._device)
        key = tuple(indices.shapes.items())
        if graph := graphs.get(key):
            with CAPTURE_GATE.running():
                self._index_buffers.copy(indices)
                return graph.run()
        if graphs.should_capture(key):
            with CAPTURE_GATE.capturing() as alone:
                outputs = self._capture(graphs, key, indices, empty) if alone else None
            if outputs is not None:
                return outputs
        outputs = self._launch(indices, empty)
        graphs.count(key, outputs)
        return outputs

    def _launch(self, indices: JoinedArrays, empty: Arrays) -> Outputs:
        """Return copies of all outputs on the host, by name. The pass has ended by then."""
        with CAPTURE_GATE.running():
            binding = self._bind(indices, empty)
            for name in self._outputs:
                binding.bind_output(name, "cpu")  # computed on the device, copied at the end
            self._bind_pools(binding)
            self._session.run_with_iobinding(binding, self._without_graph)
            outputs = binding.get_outputs()[: len(self._outputs)]  # those after them are pools
            return {name: value.numpy() for name, value in zip(self._outputs, outputs, strict=True)}

    def _capture(
        self, graphs: CapturedGraphs, key: Hashable, indices: JoinedArrays, empty: Arrays
    ) -> Outputs | None:
        binding = self._bind(indices, empty)
        self._bind_pools(binding)
        return graphs.capture(key, self._session, binding)

    def _bind(self, indices: JoinedArrays, empty: Arrays) -> ort.IOBinding:
        """Copy the index arrays to the device, and bind them."""
        binding = self._session.io_binding()
        self._index_buffers.bind(binding, indices)
        for name, array in empty.items():  # there is nothing to copy
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def _bind_pools(self, binding: ort.IOBinding) -> None:
        if self._pools is not None:
            self._pools.bind(binding)
