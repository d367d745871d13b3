"""CUDA graphs: passes whose shapes repeat are captured once and replayed as one launch.

A pass of SmolLM2 launches over 900 kernels, for which the host needs longer than a large GPU for
the work. A captured graph is launched as one. It has fixed shapes, and reads and writes fixed
addresses on the device: inputs are copied into the same buffers before each replay, and the rewards
are copied back after it.

ONNX Runtime captures a run that names a new `gpu_graph_id`, after two ordinary runs that allocate
its memory, and replays it when the id comes again. `-1` stands for no graph. It keeps graphs per
thread, and CUDA's provider never frees one (`release_captured_graph` does nothing there in 1.31).
So a shape is captured only once it has repeated, the number of graphs is limited, and none gives
way to another.
"""

import logging
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from kwise.engine.model.devices import Device

_LOG = logging.getLogger(__name__)

# A capture takes as long as three passes, so it pays only for shapes that go on coming.
MIN_PASSES = 3
# Of one session and thread. docs/gpu.md has how many shapes occur.
MAX_GRAPHS = 64
_MAX_FAILURES = 3

Array = NDArray[Any]


class CapturedGraph:
    """A captured pass. Its inputs and outputs stay bound to the addresses of the capture.

    Args:
        binding: has all inputs, and the pools as outputs.
        like: the other outputs of a pass of these shapes.
        number: the `gpu_graph_id`.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: Device,
        binding: ort.IOBinding,
        like: Mapping[str, Array],
        number: int,
    ) -> None:
        self._session = session
        self._binding = binding
        self._options = run_options(number)
        self._outputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(
                array.shape, array.dtype.type, device.kind.value, device.index
            )
            for name, array in like.items()
        }
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)

    def run(self) -> dict[str, Array]:
        """Capture the pass the first time, and replay it afterwards. Return copies of the outputs.

        The inputs must be at their addresses before.
        """
        self._session.run_with_iobinding(self._binding, self._options)
        # On a CPU `numpy` may return the buffer itself, which the next pass overwrites.
        return {name: value.numpy().copy() for name, value in self._outputs.items()}


@dataclass(slots=True, kw_only=True)
class _Shape:
    """The passes and the captured graph of one combination of input shapes.

    outputs: the outputs of its first pass.
    """

    outputs: Mapping[str, Array]
    num_passes: int = 0
    may_be_captured: bool = True
    graph: CapturedGraph | None = None


class CapturedGraphs(threading.local):
    """The captured graphs of one session, and the rule that decides what is captured.

    Each thread has its own, as in ONNX Runtime. A session is used by one thread at a time: the one
    that loads it, then the one that serves.

    num_graphs: those that were captured, or could not be.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._shapes: dict[Hashable, _Shape] = {}
        self.num_graphs = self._num_failures = 0

    def get(self, key: Hashable) -> CapturedGraph | None:
        """Return the graph for these input shapes, if there is one."""
        shape = self._shapes.get(key)
        return shape.graph if shape else None

    def count(self, key: Hashable, outputs: Mapping[str, Array]) -> None:
        """Count a pass that was not replayed."""
        self._shapes.setdefault(key, _Shape(outputs=outputs)).num_passes += 1

    def should_capture(self, key: Hashable) -> bool:
        shape = self._shapes.get(key)
        return (
            shape is not None
            and shape.may_be_captured
            and shape.num_passes >= MIN_PASSES
            and self.num_graphs < MAX_GRAPHS
            and self._num_failures < _MAX_FAILURES
        )

    def capture(
        self, key: Hashable, session: ort.InferenceSession, binding: ort.IOBinding
    ) -> dict[str, Array] | None:
        """Capture a pass whose inputs are bound, and return its outputs.

        If that fails, the shape is not captured again, and after three failures no other shape is.
        Returns None then: the pass must run without a graph, and will say what is wrong if the
        capture is not to blame.
        """
        shape = self._shapes[key]
        self.num_graphs += 1  # after a failure, its number must not come again
        try:
            graph = CapturedGraph(session, self._device, binding, shape.outputs, self.num_graphs)
            outputs = graph.run()
        except Exception as error:  # noqa: BLE001 - ONNX Runtime may raise anything
            shape.may_be_captured = False
            self._num_failures += 1
            _LOG.warning(
                "%s: a pass could not be captured as a CUDA graph, so its kernels are launched one "
                "by one: %s",
                self._device.name,
                str(error).partition("\n")[0],
            )
            return None
        shape.graph = graph
        return outputs


def run_options(number: int) -> ort.RunOptions:
    """Return the options of a run that is captured as, or replays, the graph of this number.

    With -1 the run has no graph.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options
