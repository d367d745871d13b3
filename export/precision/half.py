"""The fp32 graph → the same in fp16 or bf16: products of weights and attention are computed in it, everything between in fp32.

The residual stream, norms, softmax, rotary embedding, activations and the head stay in fp32, for they are cheap and their rounding
would add up over the layers: with all of SmolLM2 in bf16 rewards moved by an eighth of their standard deviation with their batch.
Each product's factors are cast, and so is its result back; GPUs and CPUs with such units sum up in fp32 inside. What is only moved
between two products (keys that tiles gather, heads that are laid end to end) is moved in the half precision: the same numbers.

`emulated` writes a graph that rounds in the same places and multiplies in fp32. It runs everywhere, and gives the rewards of a
runtime that sums up in fp32: so an export measures what it writes on a machine that cannot run it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from kwise.engine.precision import Precision
from kwise.export.parity import ParityError
from kwise.export.precision.matmuls import (
    ATTENTION,
    NEAREST,
    Rounded,
    attention_products,
    is_product,
    kind_of,
    weight_key,
)
from kwise.export.weights import Rewriting

_TYPES = {
    Precision.FP16: (TensorProto.FLOAT16, np.dtype(np.float16)),
    Precision.BF16: (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
# The mask of the trie's attention has -1e9 where nothing is to be seen: infinite in fp16, and a row of infinities has no softmax.
_LEAST = -60000.0
# How many of a node's inputs, from the first, hold numbers that it moves, and it does nothing else.
_MOVED = {"Gather": 1, "Reshape": 1, "Transpose": 1, "Unsqueeze": 1, "Squeeze": 1, "Concat": None}


def write_half(
    source: Path,
    destination: Path,
    precision: Precision,
    kept: Collection[str] = (),
    rounded: Rounded = NEAREST,
    *,
    emulated: bool = False,
) -> None:
    """Write the graph and the file of weights beside it. kept: kinds of products that stay in fp32, see products.py. rounded:
    some weights in the precision, by `weight_key`; the others are rounded to the nearest.

    Raises:
        ParityError: a weight is too large for the precision. A result that is shows in the rewards.
    """
    with Rewriting(source, destination) as graph:
        caster = _Caster(graph, precision, rounded, emulated)
        attention = attention_products(graph)
        for node in graph.nodes:
            kind = (
                ATTENTION
                if node.output[0] in attention
                else kind_of(node)
                if is_product(graph, node)
                else None
            )
            if kind is None or kind in kept:
                caster.emit(node)
            else:
                caster.product(node)


def dtype_of(precision: Precision) -> np.dtype[Any]:
    """NumPy's fp16 or bf16."""
    return _TYPES[precision][1]


def half_of(name: str, weight: NDArray[Any], precision: Precision) -> NDArray[Any]:
    """The nearest.

    Raises:
        ParityError: one is infinite in the precision.
    """
    dtype = dtype_of(precision)
    with np.errstate(over="ignore"):
        rounded = weight.astype(dtype)
    if not np.isfinite(rounded).all():
        raise ParityError(
            f"{dtype.name} has no number as large as {np.abs(weight).max():.3g}, which is in {name}"
        )
    return rounded


class _Caster:
    def __init__(
        self, graph: Rewriting, precision: Precision, rounded: Rounded, emulated: bool
    ) -> None:
        self._graph = graph
        self._precision = precision
        self._type, dtype = _TYPES[precision]
        self._suffix = dtype.name
        self._given = rounded
        self._emulated = emulated
        self._made_by: dict[str, onnx.NodeProto] = {}
        self._masks: dict[str, str] = {}
        self._narrow: dict[str, str] = {}  # of a name, that of the same numbers in this precision

    def emit(self, node: onnx.NodeProto) -> None:
        """As it is; but a shape is read where the numbers are, so that they need not be widened for it."""
        if node.op_type == "Shape":
            node.input[0] = self._narrow.get(node.input[0], node.input[0])
        self._made_by |= dict.fromkeys(node.output, node)
        self._graph.emit(node)

    def product(self, node: onnx.NodeProto) -> None:
        output = node.output[0]
        activations = set(range(len(node.input)))
        if node.op_type == "Attention":
            activations = {0, 1, 2}
            if len(node.input) > 3:
                node.input[3] = self._mask(node.input[3])
            if not self._emulated:
                node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))
        elif self._graph.is_weight(node.input[1]):
            activations -= {1}
            node.input[1] = self._weight(node)
        for position in activations:
            if node.input[position]:  # "" stands for none
                node.input[position] = self._rounded(node.input[position])
        narrow = self._named(output)
        node.output[0] = f"{output}.wide" if self._emulated else narrow
        self._graph.emit(node)
        if self._emulated:
            self._graph.emit(helper.make_node("Cast", [f"{output}.wide"], [narrow], to=self._type))
        self._graph.emit(helper.make_node("Cast", [narrow], [output], to=TensorProto.FLOAT))
        self._narrow[output] = output if self._emulated else narrow

    def _rounded(self, name: str) -> str:
        """The name of the same numbers in this precision."""
        if name not in self._narrow:
            if self._graph.is_weight(name):  # a bias
                self._narrow[name] = self._add(
                    name, half_of(name, self._graph.weight(name), self._precision)
                )
            elif (node := self._made_by.get(name)) is not None and (moved := self._moved_by(node)):
                copy = onnx.NodeProto.FromString(node.SerializeToString())
                copy.name = copy.output[0] = self._named(name)
                for position in moved:
                    copy.input[position] = self._rounded(copy.input[position])
                self._graph.emit(copy)
                self._narrow[name] = copy.output[0]
            else:
                self._narrow[name] = self._cast(name)
        return self._narrow[name]

    def _moved_by(self, node: onnx.NodeProto) -> range:
        """Which inputs the node moves; none where it computes, or looks a token's embedding up."""
        moved = range(len(node.input))[: _MOVED.get(node.op_type, 0)]
        return (
            range(0)
            if any(self._graph.is_weight(node.input[position]) for position in moved)
            else moved
        )

    def _cast(self, name: str) -> str:
        narrow = self._named(name)
        self._graph.emit(helper.make_node("Cast", [name], [narrow], to=self._type))
        if not self._emulated:
            return narrow
        self._graph.emit(
            helper.make_node("Cast", [narrow], [f"{narrow}.wide"], to=TensorProto.FLOAT)
        )
        return f"{narrow}.wide"

    def _mask(self, name: str) -> str:
        if self._emulated or not name:
            return name  # the same after softmax
        if name not in self._masks:
            least = self._graph.add_constant("half.least", np.array(_LEAST, np.float32))
            self._graph.emit(helper.make_node("Max", [name, least], [f"{name}.bounded"]))
            self._masks[name] = self._cast(f"{name}.bounded")
        return self._masks[name]

    def _weight(self, product: onnx.NodeProto) -> str:
        name, transposed = weight_key(product)
        columns = self._given.get((name, transposed))
        if columns is None:
            return self._rounded(name)
        return self._add(
            name, columns if transposed else columns.T, ".columns" if transposed else ""
        )

    def _add(self, name: str, rounded: NDArray[Any], suffix: str = "") -> str:
        return self._graph.add_weight(
            f"{self._named(name)}{suffix}",
            rounded.astype(np.float32) if self._emulated else rounded,
        )

    def _named(self, name: str) -> str:
        return f"{name}.{self._suffix}"
