"""Run a session on a device by IO binding.

The index arrays are copied to the device once per pass, in one piece, into a buffer that stays
there. Only the rewards come back: the keys and values of cached prompts stay in pools.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.model.devices import Device
from kwise.engine.model.runtime.index_buffer import IndexBuffers, JoinedArrays, join_arrays
from kwise.engine.model.runtime.pools import Pools, is_pool
from kwise.engine.model.runtime.protocol import Arrays


class BoundRun:
    """Runs a session on a device by IO binding. All inputs are int64 but the pools."""

    def __init__(
        self, session: ort.InferenceSession, device: Device, pools: Pools | None = None
    ) -> None:
        self._session = session
        self._pools = pools
        self._outputs = [node.name for node in session.get_outputs() if not is_pool(node.name)]
        self._index_buffers = IndexBuffers(device)

    def prepare(self, arrays: Arrays) -> Callable[[], dict[str, NDArray[Any]]]:
        """Join the index arrays, and return a function that copies all inputs and runs the pass.

        The copies wait until then, because the buffers on the device belong to the pass that runs.
        """
        indices = {name: array for name, array in arrays.items() if array.size}
        empty = {name: array for name, array in arrays.items() if not array.size}
        return partial(self._run, join_arrays(indices), empty)

    def _run(self, indices: JoinedArrays, empty: Arrays) -> dict[str, NDArray[Any]]:
        """Return copies of all outputs on the host, by name. The pass has ended by then."""
        binding = self._session.io_binding()
        self._index_buffers.bind(binding, indices)
        for name, array in empty.items():  # there is nothing to copy
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name in self._outputs:
            binding.bind_output(name, "cpu")  # computed on the device, copied at the end
        if self._pools is not None:
            self._pools.bind(binding)
        self._session.run_with_iobinding(binding)
        outputs = binding.get_outputs()[: len(self._outputs)]  # those after them are pools
        return {name: value.numpy() for name, value in zip(self._outputs, outputs, strict=True)}
