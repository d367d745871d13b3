"""The fp32 graph → the same in fp16 or bf16: products of weights and attention are computed in it, everything between in fp32.

The residual stream, norms, softmax, rotary embedding, activations and the head stay in fp32, for they are cheap and their rounding
would add up over the layers: with all of SmolLM2 in bf16 rewards moved by an eighth of their standard deviation with their batch.
Each product's factors are cast, and so is its result back; GPUs and CPUs with such units sum up in fp32 inside.

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
from kwise.export.products import ATTENTION, attention_products, is_product, kind_of
from kwise.export.weights import Rewriting

_TYPES = {
    Precision.FP16: (TensorProto.FLOAT16, np.dtype(np.float16)),
    Precision.BF16: (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
# The mask of the trie's attention has -1e9 where nothing is to be seen: infinite in fp16, and a row of infinities has no softmax.
_LEAST = -60000.0


def write_half(
    source: Path, destination: Path, precision: Precision, kept: Collection[str] = (), *, emulated: bool = False
) -> None:
    """Write the graph and the file of weights beside it. kept: kinds of products that stay in fp32, see products.py.

    Raises:
        ParityError: a weight is too large for the precision. A result that is shows in the rewards.
    """
    with Rewriting(source, destination) as graph:
        caster = _Caster(graph, precision, emulated)
        attention = attention_products(graph)
        for node in graph.nodes:
            kind = ATTENTION if node.output[0] in attention else kind_of(node) if is_product(graph, node) else None
            if kind is None or kind in kept:
                graph.emit(node)
            else:
                caster.product(node)


class _Caster:
    def __init__(self, graph: Rewriting, precision: Precision, emulated: bool) -> None:
        self._graph = graph
        self._type, self._dtype = _TYPES[precision]
        self._emulated = emulated
        self._cast: set[str] = set()

    def product(self, node: onnx.NodeProto) -> None:
        output = node.output[0]
        for position, name in enumerate(node.input):
            if name:
                node.input[position] = self._rounded(name, is_mask=node.op_type == "Attention" and position == 3)
        node.output[0] = f"{output}.{self._dtype.name}"
        if node.op_type == "Attention" and not self._emulated:
            node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))
        self._graph.emit(node)
        if self._emulated:
            self._graph.emit(helper.make_node("Cast", [node.output[0]], [f"{output}.rounded"], to=self._type))
            self._graph.emit(helper.make_node("Cast", [f"{output}.rounded"], [output], to=TensorProto.FLOAT))
        else:
            self._graph.emit(helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT))

    def _rounded(self, name: str, *, is_mask: bool) -> str:
        """The name of the same value in this precision."""
        if self._graph.is_weight(name):
            rounded = self._rounded_weight(name)
            return self._graph.add_weight(
                f"{name}.{self._dtype.name}", rounded.astype(np.float32) if self._emulated else rounded
            )
        if is_mask and self._emulated:
            return name  # the same after softmax
        cast = f"{name}.{self._dtype.name}"
        if cast not in self._cast:
            self._cast.add(cast)
            wide = name
            if is_mask:
                least = self._graph.add_constant("half.least", np.array(_LEAST, np.float32))
                wide = f"{name}.bounded"
                self._graph.emit(helper.make_node("Max", [name, least], [wide]))
            narrow = f"{cast}.narrow" if self._emulated else cast
            self._graph.emit(helper.make_node("Cast", [wide], [narrow], to=self._type))
            if self._emulated:
                self._graph.emit(helper.make_node("Cast", [narrow], [cast], to=TensorProto.FLOAT))
        return cast

    def _rounded_weight(self, name: str) -> NDArray[Any]:
        weight = self._graph.weight(name)
        with np.errstate(over="ignore"):
            rounded = weight.astype(self._dtype)
        if not np.isfinite(rounded).all():
            raise ParityError(f"{self._dtype.name} has no number as large as {np.abs(weight).max():.3g}, which is in {name}")
        return rounded
