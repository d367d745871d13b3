"""Round the weights of a graph to fp16 or bf16."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kwise.engine.precision import Precision
from kwise.export.graph_file import add_weight
from kwise.export.parity import ParityError
from kwise.export.precision.matmuls import RoundedWeights, weight_key

TYPES = {Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}


def dtype_of(precision: Precision) -> np.dtype[Any]:
    """Return NumPy's type for fp16 or bf16."""
    return TYPES[precision].numpy()


def half_of(name: str, weight: NDArray[Any], precision: Precision) -> NDArray[Any]:
    """Round the weight `name` to the nearest numbers of the precision.

    Raises:
        ParityError: A number becomes infinite.
    """
    dtype = dtype_of(precision)
    with np.errstate(over="ignore"):
        rounded = weight.astype(dtype)
    if not np.isfinite(rounded).all():
        raise ParityError(
            f"the weight {name} contains {np.abs(weight).max():.3g}, which is too large for "
            f"{dtype.name}"
        )
    return rounded


class HalfWeights:
    """The rounded weights of one graph; each is added to it when a node first needs it.

    Args:
        rounded: Weights in the precision. Other weights are rounded to the nearest number.
        emulated: Add weights in fp32, rounded to the precision.
    """

    def __init__(
        self, graph: ir.Graph, precision: Precision, rounded: RoundedWeights, emulated: bool
    ) -> None:
        self._graph = graph
        self._precision = precision
        self._rounded = rounded
        self._emulated = emulated
        self._nearest: dict[ir.Value, ir.Value] = {}
        self._factors: dict[tuple[str, bool], ir.Value] = {}

    def of_matmul(self, matmul: ir.Node) -> ir.Value:
        """Return the weights of a matmul, as its node stores them.

        Raises:
            ParityError: A number becomes infinite.
        """
        name, transposed = key = weight_key(matmul)
        if key not in self._rounded:
            weight = matmul.inputs[1]
            assert weight is not None
            return self.nearest(weight)
        if key not in self._factors:
            columns = self._rounded[key]
            suffix = ".columns" if transposed else ""
            self._factors[key] = self._add(name, columns if transposed else columns.T, suffix)
        return self._factors[key]

    def nearest(self, value: ir.Value) -> ir.Value:
        """Return a weight (a bias, a norm's scale), rounded to the nearest numbers.

        Raises:
            ParityError: A number becomes infinite.
        """
        if value not in self._nearest:
            assert value.name is not None and value.const_value is not None
            half = half_of(value.name, value.const_value.numpy(), self._precision)
            self._nearest[value] = self._add(value.name, half)
        return self._nearest[value]

    def _add(self, name: str, half: NDArray[Any], suffix: str = "") -> ir.Value:
        tensor: NDArray[Any] | ir.TensorProtocol = half
        if self._emulated:  # one at a time, when they are written: they are twice as large
            tensor = ir.LazyTensor(
                lambda: ir.tensor(half.astype(np.float32)),
                ir.DataType.FLOAT,
                ir.Shape(half.shape),
            )
        return add_weight(self._graph, f"{name}.{dtype_of(self._precision).name}{suffix}", tensor)
