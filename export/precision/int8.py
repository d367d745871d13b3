"""The fp32 graph → products of int8, each row of activations with a scale of its own.

A factor x [T, K] of a product x·W becomes round(x / s) with s [T, 1] the largest of the row's magnitudes over 127, and a
weight [K, N] round(W / t) with t [N] likewise of each output channel; the product is summed up in int32 and multiplied by s and
t. A token's rounding then depends on that token alone. ONNX Runtime's dynamic quantisation has one scale for the whole batch, so
that a reward would depend on its neighbours; its MatMulNBits has a scale a row, and takes 1.5 to 2 times as long as fp32 on AVX2.

Both factors are rotated first, weights here, activations at each pass; see rotation.py.

The rows that the head reads (`last_rows` of the trie's graph; T rows everywhere before the head), one a sequence, get a second
product with the same weights, of what rounding took from them: x ≈ s·(q + p/254) with p int8 too, 16 bits in all. Their errors go
straight into the reward, those of other rows through attention's averages: on 16 real groups Kendall's tau is 0.969 instead of
0.941. It costs somewhat more than B more rows would, which is little where responses are longer than a few tokens.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from kwise.export.precision.matmuls import (
    NEAREST,
    Rounded,
    columns_of,
    is_product,
    is_transposed,
    kind_of,
    weight_key,
)
from kwise.export.precision.rotation import Float32, Rotation
from kwise.export.weights import Rewriting

_LEVELS = 127
_ZERO = 128  # ONNX Runtime's fast kernels want unsigned activations
_DOMAIN = "com.microsoft"
_LAST_ROWS = "last_rows"


def write_int8(
    source: Path, destination: Path, kept: Collection[str] = (), rounded: Rounded = NEAREST
) -> None:
    """Write the graph and the file of weights beside it. kept: kinds of products that stay in fp32, see products.py. rounded:
    levels int8[N, K] of some weights, by `weight_key`; the others are rounded to the nearest."""
    with Rewriting(source, destination) as graph:
        if not any(opset.domain == _DOMAIN for opset in graph.model.opset_import):
            graph.model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        quantiser = _Quantiser(graph, rounded)
        for node in graph.nodes:
            if is_product(graph, node) and kind_of(node) not in kept:
                quantiser.product(node)
            else:
                graph.emit(node)


def scales_of(columns: Float32) -> Float32:
    """[N, 1] of rotated weights [N, K]; those of channels of zeros do not matter."""
    scale = np.abs(columns).max(axis=1, keepdims=True) / np.float32(_LEVELS)
    scale[scale == 0] = 1
    return scale


def levels_of(columns: Float32, scale: Float32) -> NDArray[np.int8]:
    """The nearest."""
    return np.clip(np.round(columns / scale), -_LEVELS, _LEVELS).astype(np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What the rows of a factor became, by name. leading: int64, their dimensions before the last, which become one of T rows;
    levels: uint8[T, K], 128 for zero; scale: float32[T, 1]; remainders: uint8[B, K], where there are last rows."""

    leading: str
    levels: str
    scale: str
    remainders: str


class _Quantiser:
    def __init__(self, graph: Rewriting, rounded: Rounded) -> None:
        self._graph = graph
        self._rounded = rounded
        self._rows: dict[str, _Rows] = {}
        self._indexed: set[int] = set()
        self._has_last_rows = any(value.name == _LAST_ROWS for value in graph.model.graph.input)

    def product(self, node: onnx.NodeProto) -> None:
        """Emit x·W in int8, and, where the node is a Gemm, + C in fp32."""
        x, name, *others = node.input
        bias = [other for other in others if other]  # "" stands for none
        output = node.output[0]
        columns = columns_of(self._graph, node)
        suffix = ".columns" if is_transposed(node) else ""  # one weight may be read both ways round
        levels, scale = self._add_weight(name, suffix, columns, self._rounded.get(weight_key(node)))
        num_outputs, width = columns.shape
        rows = self._quantised(x, width)
        product = self._multiply(rows.levels, "int8.one", levels, scale, f"{output}.int8")
        if self._has_last_rows:
            finer = self._multiply(rows.remainders, "int8.fine", levels, scale, f"{output}.finer")
            product = self._added_to_last_rows(product, finer, num_outputs)
        flat = output if node.op_type == "Gemm" else f"{output}.flat"
        scaled = f"{output}.scaled" if bias else flat
        self._graph.emit(helper.make_node("Mul", [product, rows.scale], [scaled]))
        if bias:
            self._graph.emit(helper.make_node("Add", [scaled, *bias], [flat]))
        if flat != output:
            outputs = self._constant(f"int8.outputs.{num_outputs}", np.array([num_outputs]))
            self._graph.emit(
                helper.make_node("Concat", [rows.leading, outputs], [f"{output}.shape"], axis=0),
                helper.make_node("Reshape", [flat, f"{output}.shape"], [output]),
            )

    def _add_weight(
        self, name: str, suffix: str, columns: Float32, levels: NDArray[np.int8] | None
    ) -> tuple[str, str]:
        """The names of the levels and the scales."""
        turned = Rotation(columns.shape[1]).rotated(columns)
        scale = scales_of(turned)
        levels = levels_of(turned, scale) if levels is None else levels
        return (
            self._graph.add_weight(f"{name}.int8{suffix}", levels.T),
            self._graph.add_weight(f"{name}.scale{suffix}", scale[:, 0]),
        )

    def _multiply(self, rows: str, row_step: str, levels: str, scale: str, output: str) -> str:
        inputs = [rows, levels, row_step, scale, "int8.zero"]
        self._graph.emit(helper.make_node("MatMulIntegerToFloat", inputs, [output], domain=_DOMAIN))
        return output

    def _added_to_last_rows(self, product: str, finer: str, width: int) -> str:
        """`product` [T, N] with `finer` [B, N] added to the rows that the head reads. One that is several sequences' gets it once:
        each writes the same sum."""
        sums = f"{product}.whole"
        # ONNX Runtime scatters in place where it knows that both are as large.
        for name in (product, sums):
            self._graph.model.graph.value_info.append(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
            )
        self._graph.emit(
            helper.make_node("Gather", [product, _LAST_ROWS], [f"{product}.last"]),
            helper.make_node("Add", [f"{product}.last", finer], [f"{product}.sums"]),
            helper.make_node(
                "ScatterElements", [product, self._last_indices(width), f"{product}.sums"], [sums]
            ),
        )
        return sums

    def _quantised(self, x: str, width: int) -> _Rows:
        """Products of the same rows share them."""
        if x not in self._rows:
            self._rows[x] = self._quantise(x, width)
        return self._rows[x]

    def _quantise(self, x: str, width: int) -> _Rows:
        p = f"{x}.row"
        turned = self._turned(x, width)
        first = self._constant("int8.first", np.array([0]))
        one, zero = (
            self._constant("int8.one", np.array(1, np.float32)),
            self._constant("int8.zero", np.array(_ZERO, np.uint8)),
        )
        last = self._constant("int8.last", np.array([-1]))
        self._graph.emit(
            helper.make_node("Shape", [x], [f"{p}.shape"]),
            helper.make_node("Slice", [f"{p}.shape", first, last], [f"{p}.leading"]),
            helper.make_node("Abs", [turned], [f"{p}.abs"]),
            helper.make_node("ReduceMax", [f"{p}.abs", last], [f"{p}.max"], keepdims=1),
            helper.make_node(
                "Mul",
                [f"{p}.max", self._constant("int8.step", np.array(1 / _LEVELS, np.float32))],
                [f"{p}.steps"],
            ),
            # What is not finite makes the row's scale, and so its products, no number: rounded, it would be one.
            helper.make_node("ReduceSum", [f"{p}.abs", last], [f"{p}.sum"], keepdims=1),
            helper.make_node(
                "Mul",
                [f"{p}.sum", self._constant("int8.nothing", np.array(0, np.float32))],
                [f"{p}.nothing"],
            ),
            helper.make_node("Add", [f"{p}.steps", f"{p}.nothing"], [f"{p}.finite"]),
            # A row of zeros has no scale of its own.
            helper.make_node(
                "Max",
                [f"{p}.finite", self._constant("int8.least", np.array(1e-20, np.float32))],
                [f"{p}.scale"],
            ),
            helper.make_node("Div", [turned, f"{p}.scale"], [f"{p}.scaled"]),
            helper.make_node("QuantizeLinear", [f"{p}.scaled", one, zero], [f"{p}.int8"]),
        )
        if self._has_last_rows:
            self._remainders(p)
        return _Rows(
            leading=f"{p}.leading",
            levels=f"{p}.int8",
            scale=f"{p}.scale",
            remainders=f"{p}.remainders",
        )

    def _remainders(self, p: str) -> None:
        """What rounding left of the rows that the head reads, uint8[B, K] in steps of 1/254: at most half a level."""
        fine = self._constant("int8.fine", np.array(0.5 / _LEVELS, np.float32))
        self._graph.emit(
            helper.make_node("Gather", [f"{p}.scaled", _LAST_ROWS], [f"{p}.scaled.last"]),
            helper.make_node("Gather", [f"{p}.int8", _LAST_ROWS], [f"{p}.int8.last"]),
            helper.make_node(
                "DequantizeLinear",
                [f"{p}.int8.last", "int8.one", "int8.zero"],
                [f"{p}.coarse.last"],
            ),
            helper.make_node("Sub", [f"{p}.scaled.last", f"{p}.coarse.last"], [f"{p}.rest.last"]),
            helper.make_node(
                "QuantizeLinear", [f"{p}.rest.last", fine, "int8.zero"], [f"{p}.remainders"]
            ),
        )

    def _last_indices(self, width: int) -> str:
        """int64[B, N], the row of each element; made once for all products of this width."""
        name = f"int8.last_rows.{width}"
        if width not in self._indexed:
            self._indexed.add(width)
            last = self._constant("int8.last", np.array([-1]))
            outputs = self._constant(f"int8.outputs.{width}", np.array([width]))
            self._graph.emit(
                helper.make_node("Shape", [_LAST_ROWS], [f"{name}.count"]),
                helper.make_node("Concat", [f"{name}.count", outputs], [f"{name}.shape"], axis=0),
                helper.make_node("Unsqueeze", [_LAST_ROWS, last], [f"{name}.column"]),
                helper.make_node("Expand", [f"{name}.column", f"{name}.shape"], [name]),
            )
        return name

    def _turned(self, x: str, width: int) -> str:
        """x rotated, as `Rotation.rotated` does it, [T, K] whatever dimensions the rows had."""
        p = f"{x}.row"
        rotation = Rotation(width)
        a, b = rotation.sides
        first, second = (
            self._constant(f"int8.turn.{len(matrix)}", matrix) for matrix in rotation.matrices
        )
        blocks = self._constant(f"int8.blocks.{a}.{b}", np.array([-1, a, b]))
        flat = self._constant(f"int8.flat.{width}", np.array([-1, width]))
        self._graph.emit(
            helper.make_node("Reshape", [x, blocks], [f"{p}.blocks"]),
            helper.make_node("MatMul", [f"{p}.blocks", second], [f"{p}.once"]),
            helper.make_node("Transpose", [f"{p}.once"], [f"{p}.transposed"], perm=[0, 2, 1]),
            helper.make_node("MatMul", [f"{p}.transposed", first], [f"{p}.twice"]),
            helper.make_node("Reshape", [f"{p}.twice", flat], [f"{p}.rotated"]),
        )
        return f"{p}.rotated"

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        return self._graph.add_constant(name, value)
