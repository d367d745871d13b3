"""Run a session on a device by IO binding.

The index arrays are copied to the device once per pass, in one piece, into a buffer that stays
there. Only the rewards, and the keys and values that the prompt cache stores, come back. That cache
is in host memory also with a GPU, because ONNX Runtime's Python API can neither slice nor join
tensors on a device; docs/gpu.md has what this costs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.model.devices import Device
from kwise.engine.model.runtime.index_buffer import IndexBuffers, JoinedArrays, join_arrays
from kwise.engine.model.runtime.protocol import Arrays


class BoundRun:
    """Runs a session on a device by IO binding."""

    def __init__(self, session: ort.InferenceSession, device: Device) -> None:
        self._session = session
        self._device = device
        self._outputs = [node.name for node in session.get_outputs()]
        self._index_buffers = IndexBuffers(device)

    def prepare(self, arrays: Arrays) -> Callable[[], dict[str, NDArray[Any]]]:
        """Join the index arrays, and return a function that copies all inputs and runs the pass.

        The copies wait until then, because the buffers on the device belong to the pass that runs.
        """
        indices = {
            name: array for name, array in arrays.items() if array.dtype == np.int64 and array.size
        }
        others = {name: array for name, array in arrays.items() if name not in indices}
        return partial(self._run, join_arrays(indices), others)

    def _run(self, indices: JoinedArrays, others: Arrays) -> dict[str, NDArray[Any]]:
        """Return copies of all outputs on the host, by name. The pass has ended by then."""
        binding = self._session.io_binding()
        self._index_buffers.bind(binding, indices)
        for name, array in others.items():
            binding.bind_ortvalue_input(name, self._on_device(array))
        for name in self._outputs:
            # Computed on the device and copied at the end of the pass. `present.*` has no rows if
            # nothing is to be cached.
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))

    def _on_device(self, array: NDArray[Any]) -> ort.OrtValue:
        """Copy cached states, which are large and seldom of the same shape, to the device."""
        array = np.ascontiguousarray(array)
        if not array.size:  # there is nothing to copy
            return ort.OrtValue.ortvalue_from_numpy(array)
        return ort.OrtValue.ortvalue_from_numpy(array, self._device.kind.value, self._device.index)
