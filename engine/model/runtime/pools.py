"""The tables of cached keys and values that a trie graph for CUDA has on its device.

The graph reads and writes slots of them (see kwise/export/graphs/device_cache.py). Each table is
bound as an input and as an output, so ScatterND writes to it in place.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from kwise.engine.model.devices import Device
from kwise.engine.model.runtime.cuda import free_bytes

_POOL, _UPDATED = "pool.", "updated."
# NumPy has no bfloat16; ONNX's number of it is 16.
_TYPES: dict[str, tuple[Any, int]] = {
    "tensor(float)": (np.float32, 4),
    "tensor(float16)": (np.float16, 2),
    "tensor(bfloat16)": (16, 2),
}
# Of the memory that is free once the weights are loaded. The rest is for activations.
_SHARE_OF_FREE_MEMORY = 0.25


def is_pool(name: str) -> bool:
    """Return whether an input or output of a graph is a pool."""
    return name.startswith((_POOL, _UPDATED))


class Pools:
    """The pools of one session.

    num_slots: the number of slots of each pool. Slot 0 is for padding and holds nothing.
    slot_bytes: the bytes that a slot takes in all pools together.
    """

    def __init__(self, nodes: Sequence[ort.NodeArg], device: Device, num_bytes: int | None) -> None:
        """Allocate pools that take `num_bytes` together, or a quarter of the free memory if None.

        They are not initialised, because no slot is read before it is written.
        """
        self.slot_bytes = sum(node.shape[1] * _TYPES[node.type][1] for node in nodes)
        if num_bytes is None:
            num_bytes = int(_SHARE_OF_FREE_MEMORY * free_bytes(device))
        self.num_slots = 1 + num_bytes // self.slot_bytes
        self._tables = {
            node.name.removeprefix(_POOL): ort.OrtValue.ortvalue_from_shape_and_type(
                [self.num_slots, node.shape[1]],
                _TYPES[node.type][0],
                device.kind.value,
                device.index,
            )
            for node in nodes
        }

    @classmethod
    def of(
        cls, session: ort.InferenceSession, device: Device, num_bytes: int | None
    ) -> "Pools | None":
        """Return the pools of a session; None if its graph has none."""
        nodes = [node for node in session.get_inputs() if is_pool(node.name)]
        return cls(nodes, device, num_bytes) if nodes else None

    def bind(self, binding: ort.IOBinding) -> None:
        for name, table in self._tables.items():
            binding.bind_ortvalue_input(f"{_POOL}{name}", table)
            binding.bind_ortvalue_output(f"{_UPDATED}{name}", table)
