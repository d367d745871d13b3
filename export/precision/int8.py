"""Turn a graph in fp32 into one whose products multiply int8 by int8.

A product x·W of rows x [T, K] and weights W [K, N] becomes round(x / s) · round(W / t), summed up
in int32 and multiplied by s and t. The scale s [T, 1] is the largest magnitude of each row over
127, t [N] that of each output channel, so a token's rounding depends on that token alone. Both
factors are rotated before, weights once and activations at each pass; see rotation.py.

The rows that the head reads, one for each sequence (`last_rows` of the trie's graph), have 16 bits:
x ≈ s·(q + p/254) with q and p in int8, and a second product with the same weights adds what p
stands for. Their errors go straight into the reward, those of other rows through attention's
averages. With mean pooling the head reads all rows of a response, whose errors average out, so none
has 16 bits.

docs/precisions.md has the figures, and why ONNX Runtime's own quantisation does not serve.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kwise.export.graph_file import add_weight, read_graph, write_graph
from kwise.export.precision.matmuls import (
    NONE_ROUNDED,
    RoundedWeights,
    WeightKey,
    columns_of,
    is_matmul,
    layer_group,
    weight_key,
)
from kwise.export.precision.rotation import Float32, Rotation

_MAX_QUANTISED = 127
_ZERO_POINT = 128  # ONNX Runtime's fast kernels need unsigned activations
_DOMAIN = "com.microsoft"
_LAST_ROWS = "last_rows"


def write_int8(
    source: Path,
    destination: Path,
    fp32_layers: Collection[str] = (),
    rounded: RoundedWeights = NONE_ROUNDED,
    *,
    finer_last_rows: bool = True,
) -> None:
    """Write the graph `source` in int8, and its weights in a file beside it.

    Args:
        fp32_layers: Layer groups that stay in fp32, see `matmuls.layer_groups`.
        rounded: Quantised weights, each int8[N, K]. Others are rounded to the nearest.
        finer_last_rows: Give the graph's `last_rows`, if it has that input, 16 bits.
    """
    model = read_graph(source)
    model.opset_imports.setdefault(_DOMAIN, 1)
    quantiser = _Quantiser(model.graph, rounded, finer_last_rows)
    for node in tuple(model.graph):
        if is_matmul(node) and layer_group(node) not in fp32_layers:
            quantiser.replace(node)
    write_graph(model, destination)


def scales_of(columns: Float32) -> Float32:
    """Return the scales [N, 1] of rotated weights [N, K]; 1 for a channel of zeros."""
    scale = np.abs(columns).max(axis=1, keepdims=True) / np.float32(_MAX_QUANTISED)
    scale[scale == 0] = 1
    return scale


def quantise(columns: Float32, scale: Float32) -> NDArray[np.int8]:
    """Round weights over their scale to the nearest integers from -127 to 127."""
    return np.clip(np.round(columns / scale), -_MAX_QUANTISED, _MAX_QUANTISED).astype(np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The quantised rows of a factor.

    Attributes:
        leading: int64, the factor's dimensions before the last, which are joined to T rows.
        quantised: uint8[T, K], 128 for zero.
        scale: float32[T, 1].
        remainders: uint8[B, K], what rounding left of the B last rows; None without last rows.
    """

    leading: ir.Value
    quantised: ir.Value
    scale: ir.Value
    remainders: ir.Value | None


class _Quantiser:
    """Replaces matmuls of one graph, in the order of computation, by products in int8."""

    def __init__(self, graph: ir.Graph, rounded: RoundedWeights, finer_last_rows: bool) -> None:
        self._graph = graph
        self._rounded = rounded
        self._tape = ir.tape.Tape()  # the nodes that replace the current matmul
        self._rows: dict[ir.Value, _Rows] = {}  # shared by the matmuls of one factor
        self._weights: dict[WeightKey, tuple[ir.Value, ir.Value]] = {}
        self._row_indices: dict[int, ir.Value] = {}
        last_rows = next((v for v in graph.inputs if v.name == _LAST_ROWS), None)
        self._last_rows = last_rows if finer_last_rows else None

    def replace(self, matmul: ir.Node) -> None:
        """Compute x·W in int8, and add a Gemm's bias in fp32."""
        self._tape = ir.tape.Tape()
        x, _, *bias = matmul.inputs
        assert x is not None
        num_outputs, width = columns_of(matmul).shape
        weights, scale = self._quantised_weights(matmul)
        rows = self._quantised_rows(x, width)
        product = self._multiply(rows.quantised, self._constant("one", 1.0), weights, scale)
        if rows.remainders is not None:
            finer = self._multiply(rows.remainders, self._fine_step(), weights, scale)
            product = self._add_to_last_rows(product, finer, num_outputs)
        result = self._op("Mul", product, rows.scale)
        if bias and bias[0] is not None:
            result = self._op("Add", result, bias[0])
        if matmul.op_type == "MatMul":
            outputs = self._shape("outputs", num_outputs)
            shape = self._op("Concat", rows.leading, outputs, axis=0)
            result = self._op("Reshape", result, shape)
        ir.convenience.replace_nodes_and_values(
            self._graph, matmul, [matmul], self._tape.nodes, matmul.outputs, [result]
        )

    def _quantised_weights(self, matmul: ir.Node) -> tuple[ir.Value, ir.Value]:
        """Return the weights int8[K, N] and their scales float32[N]."""
        key = weight_key(matmul)
        if key not in self._weights:
            name, transposed = key
            suffix = ".columns" if transposed else ""  # one weight may be read either way round
            columns = columns_of(matmul)
            rotated = Rotation(columns.shape[1]).rotated(columns)
            scale = scales_of(rotated)
            quantised = self._rounded.get(key)
            if quantised is None:
                quantised = quantise(rotated, scale)
            self._weights[key] = (
                add_weight(self._graph, f"{name}.int8{suffix}", quantised.T),
                add_weight(self._graph, f"{name}.scale{suffix}", scale[:, 0]),
            )
        return self._weights[key]

    def _multiply(
        self, rows: ir.Value, row_step: ir.Value, weights: ir.Value, scale: ir.Value
    ) -> ir.Value:
        """Multiply uint8[T, K] in steps of `row_step` by int8[K, N] in steps of `scale`."""
        inputs = [rows, weights, row_step, scale, self._zero_point()]
        return self._tape.op("MatMulIntegerToFloat", inputs, domain=_DOMAIN)

    def _add_to_last_rows(self, product: ir.Value, finer: ir.Value, width: int) -> ir.Value:
        """Add `finer` [B, N] to the last rows of `product` [T, N].

        A row that is the last of several sequences gets it once: each writes the same sum.
        """
        sums = self._op("Add", self._op("Gather", product, self._last_rows), finer)
        result = self._op("ScatterElements", product, self._last_row_indices(width), sums)
        # ONNX Runtime scatters in place if it knows that both have the same size.
        for value in (product, result):
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["rows", width])
        return result

    def _quantised_rows(self, x: ir.Value, width: int) -> _Rows:
        if x not in self._rows:
            self._rows[x] = self._quantise_rows(x, width)
        return self._rows[x]

    def _quantise_rows(self, x: ir.Value, width: int) -> _Rows:
        rotated = self._rotate(x, width)
        last_axis = self._shape("last_axis", -1)
        leading = self._op("Slice", self._op("Shape", x), self._shape("first", 0), last_axis)
        magnitudes = self._op("Abs", rotated)
        maximum = self._op("ReduceMax", magnitudes, last_axis, keepdims=1)
        scale = self._op("Mul", maximum, self._constant("step", 1 / _MAX_QUANTISED))
        # Rounding would hide a value that is not finite. Adding 0 times the row's sum makes the
        # scale NaN, and with it the row's products.
        total = self._op("ReduceSum", magnitudes, last_axis, keepdims=1)
        scale = self._op("Add", scale, self._op("Mul", total, self._constant("nothing", 0.0)))
        scale = self._op("Max", scale, self._constant("min_scale", 1e-20))  # for a row of zeros
        scaled = self._op("Div", rotated, scale)
        quantised = self._op(
            "QuantizeLinear", scaled, self._constant("one", 1.0), self._zero_point()
        )
        return _Rows(
            leading=leading,
            quantised=quantised,
            scale=scale,
            remainders=self._remainders(scaled, quantised) if self._last_rows else None,
        )

    def _remainders(self, scaled: ir.Value, quantised: ir.Value) -> ir.Value:
        """Quantise what rounding left of the last rows: uint8[B, K] in steps of 1/254.

        A remainder is at most one half, so its quantised value is at most 127.
        """
        last_scaled = self._op("Gather", scaled, self._last_rows)
        last_quantised = self._op("Gather", quantised, self._last_rows)
        coarse = self._op(
            "DequantizeLinear", last_quantised, self._constant("one", 1.0), self._zero_point()
        )
        remainders = self._op("Sub", last_scaled, coarse)
        return self._op("QuantizeLinear", remainders, self._fine_step(), self._zero_point())

    def _last_row_indices(self, width: int) -> ir.Value:
        """Return the row of each element of the last rows, int64[B, N]; one for each N."""
        if width not in self._row_indices:
            count = self._op("Shape", self._last_rows)
            shape = self._op("Concat", count, self._shape("outputs", width), axis=0)
            column = self._op("Unsqueeze", self._last_rows, self._shape("last_axis", -1))
            self._row_indices[width] = self._op("Expand", column, shape)
        return self._row_indices[width]

    def _rotate(self, x: ir.Value, width: int) -> ir.Value:
        """Rotate x as `Rotation.rotated` does, and join its leading dimensions: float32[T, K]."""
        rotation = Rotation(width)
        a, b = rotation.sides
        first, second = (
            self._initializer(f"rotation.{len(matrix)}", matrix) for matrix in rotation.matrices
        )
        blocks = self._op("Reshape", x, self._shape("blocks", -1, a, b))
        blocks = self._op("MatMul", blocks, second)
        blocks = self._op("Transpose", blocks, perm=[0, 2, 1])
        blocks = self._op("MatMul", blocks, first)
        return self._op("Reshape", blocks, self._shape("flat", -1, width))

    def _op(
        self, op_type: str, *inputs: ir.Value | None, **attributes: int | list[int]
    ) -> ir.Value:
        return self._tape.op(op_type, inputs, attributes)

    def _zero_point(self) -> ir.Value:
        return self._initializer("zero_point", np.array(_ZERO_POINT, np.uint8))

    def _fine_step(self) -> ir.Value:
        return self._constant("fine_step", 0.5 / _MAX_QUANTISED)

    def _constant(self, name: str, value: float) -> ir.Value:
        return self._initializer(name, np.array(value, np.float32))

    def _shape(self, name: str, *sizes: int) -> ir.Value:
        return self._initializer(f"{name}.{'.'.join(map(str, sizes))}", np.array(sizes))

    def _initializer(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """Return the constant of this name, which is the same for all matmuls."""
        name = f"int8.{name}"
        existing = self._graph.initializers.get(name)
        return existing if existing is not None else add_weight(self._graph, name, array)
