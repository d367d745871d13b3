"""The index arrays of a pass in one buffer on a device, so that one copy takes them there.

A pass of the trie graph has about twenty index arrays. Each copy to a device costs about 10 µs of
the host's time whatever its size. The graph's inputs are bound to addresses inside the buffer, so
the graph needs no node that takes the arrays apart.

A buffer's size is rounded up, and there is one buffer per size. So few buffers exist, and arrays of
the same shapes are always at the same addresses.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from kwise.engine.model.devices import Device
from kwise.engine.trie import Int64

# CUDA aligns its allocations to 256 bytes, and kernels may rely on it: 32 elements.
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedArrays:
    """Index arrays in one array on the host.

    values: int64[size]. What is between the arrays and after them is 0.
    offsets: the place of each array's first element.
    shapes: the shape of each array.
    """

    values: Int64
    offsets: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


def join_arrays(arrays: Mapping[str, Int64]) -> JoinedArrays:
    """Copy the arrays, none of them empty, into one array of a size that repeats."""
    offsets: dict[str, int] = {}
    stop = 0
    for name, array in arrays.items():
        offsets[name] = stop
        stop += -(-array.size // _ALIGNMENT) * _ALIGNMENT
    step = max(1 << stop.bit_length() >> 3, 1 << 13)  # four sizes per doubling, from 64 KB on
    values = np.zeros(-(-stop // step) * step, np.int64)
    for name, array in arrays.items():
        values[offsets[name] : offsets[name] + array.size] = array.ravel()
    shapes = {name: array.shape for name, array in arrays.items()}
    return JoinedArrays(values=values, offsets=offsets, shapes=shapes)


class IndexBuffers:
    """The buffers of one device: one per size. A pass uses one of them, until it ends."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: dict[int, ort.OrtValue] = {}

    def bind(self, binding: ort.IOBinding, joined: JoinedArrays) -> None:
        """Copy the arrays to the device and bind the inputs of their names to them.

        Arrays of the same shapes are always at the same addresses.
        """
        buffer = self.copy(joined)
        for name, shape in joined.shapes.items():
            address = buffer.data_ptr() + joined.values.itemsize * joined.offsets[name]
            binding.bind_input(
                name, self._device.kind.value, self._device.index, np.int64, shape, address
            )

    def copy(self, joined: JoinedArrays) -> ort.OrtValue:
        """Copy the arrays to the device, into the buffer of their size, and return the buffer."""
        size = len(joined.values)
        if size not in self._buffers:
            self._buffers[size] = ort.OrtValue.ortvalue_from_shape_and_type(
                [size], np.int64, self._device.kind.value, self._device.index
            )
        buffer = self._buffers[size]
        buffer.update_inplace(joined.values)
        return buffer

    def __len__(self) -> int:
        return len(self._buffers)
