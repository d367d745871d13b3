"""Turn a graph in fp32 into one in fp16 or bf16.

The products of weights and of attention are computed in the half precision, the rest in fp32: the
residual stream, norms, softmax, rotary embedding, activations and the head. These are cheap, and
their rounding would add up over the layers: with all of SmolLM2 in bf16, rewards changed by an
eighth of their standard deviation with the batch composition.

Both factors of a product are cast, and its result is cast back. Hardware sums up in fp32 inside,
in an order of its own; a GPU may round partial sums to the half precision unless it is told not to
(docs/gpu.md).
Nodes that only move numbers between two products (keys that tiles gather, heads that are joined)
move them in the half precision.

With `emulated` the graph rounds in the same places and multiplies in fp32. It runs everywhere and
gives the rewards of hardware that sums up in fp32 and in the same order for every batch, so an
export can measure what it writes on a machine that cannot run it. With `split_sums` the emulation
sums up in another order, which shows what a GPU's choice of order changes.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kwise.engine.precision import Precision
from kwise.export.graph_file import add_weight, read_graph, write_graph
from kwise.export.parity import ParityError
from kwise.export.precision.matmuls import (
    ATTENTION,
    NONE_ROUNDED,
    RoundedWeights,
    attention_nodes,
    is_matmul,
    is_transposed,
    is_weight,
    layer_group,
    weight_key,
)

_TYPES = {Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}
# The mask of the trie's attention has -1e9 where a query must not look. That is -inf in fp16, and
# softmax of a row of -inf is NaN.
_MIN_MASK = -60000.0
# Nodes that only move numbers, and how many of their inputs, from the first, they move.
_MOVES = {"Gather": 1, "Reshape": 1, "Transpose": 1, "Unsqueeze": 1, "Squeeze": 1, "Concat": None}


def write_half(
    source: Path,
    destination: Path,
    precision: Precision,
    fp32_layers: Collection[str] = (),
    rounded: RoundedWeights = NONE_ROUNDED,
    *,
    emulated: bool = False,
    split_sums: bool = False,
) -> None:
    """Write the graph `source` in fp16 or bf16, and its weights in a file beside it.

    Args:
        fp32_layers: Layer groups that stay in fp32, see `matmuls.layer_groups`.
        rounded: Weights in the precision. Other weights are rounded to the nearest number.
        emulated: Write weights and products in fp32, rounded to the precision.
        split_sums: Sum up each product with a weight in two halves, as a GPU may: to measure what
            another order of summation changes. Needs `emulated`.

    Raises:
        ParityError: A weight is too large for the precision. Activations that are too large show in
            the rewards.
    """
    model = read_graph(source)
    caster = _Caster(model.graph, precision, rounded, emulated, split_sums)
    attention = attention_nodes(model.graph)
    for node in tuple(model.graph):
        if node in attention:
            group = ATTENTION
        elif is_matmul(node):
            group = layer_group(node)
        else:
            caster.redirect_shape(node)
            continue
        if group not in fp32_layers:
            caster.replace(node)
    write_graph(model, destination)


def dtype_of(precision: Precision) -> np.dtype[Any]:
    """Return NumPy's type for fp16 or bf16."""
    return _TYPES[precision].numpy()


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


class _Caster:
    """Replaces products of one graph, in the order of computation, by half-precision ones."""

    def __init__(
        self,
        graph: ir.Graph,
        precision: Precision,
        rounded: RoundedWeights,
        emulated: bool,
        split_sums: bool,
    ) -> None:
        self._graph = graph
        self._precision = precision
        self._type = _TYPES[precision]
        self._rounded = rounded
        self._emulated = emulated
        self._split_sums = split_sums
        self._tape = ir.tape.Tape()  # the nodes that replace the current product
        self._halves: dict[ir.Value, ir.Value] = {}  # by the fp32 value
        self._masks: dict[ir.Value, ir.Value] = {}
        self._weights: dict[tuple[str, bool], ir.Value] = {}

    def redirect_shape(self, node: ir.Node) -> None:
        """Let a Shape node read the half-precision value, so that no cast back is needed for it."""
        if node.op_type == "Shape" and (half := self._halves.get(_input(node, 0))) is not None:
            node.replace_input_with(0, half)

    def replace(self, node: ir.Node) -> None:
        """Compute the node's product in half precision and cast its result to fp32."""
        self._tape = ir.tape.Tape()
        inputs, attributes = list(node.inputs), dict(node.attributes)
        activations = range(len(inputs))
        if node.op_type == "Attention":
            activations = range(3)
            if len(inputs) > 3:
                inputs[3] = self._mask(inputs[3])
            if not self._emulated:
                precision = ir.AttrInt64("softmax_precision", ir.DataType.FLOAT)
                attributes[precision.name] = precision
        for position in activations:
            value = inputs[position]
            if value is not None and not (position == 1 and is_weight(value)):
                inputs[position] = self._half(value)
        if is_matmul(node):
            inputs[1] = self._weight(node)
        if self._split_sums and is_matmul(node):
            product = self._sum_of_halves(node, inputs)
        else:
            product = self._tape.op(node.op_type, inputs, attributes, domain=node.domain)
        half = self._cast(product, self._type) if self._emulated else product
        result = self._cast(half, ir.DataType.FLOAT)
        self._halves[result] = result if self._emulated else half
        ir.convenience.replace_nodes_and_values(
            self._graph, node, [node], self._tape.nodes, node.outputs, [result]
        )

    def _sum_of_halves(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Value:
        """Return the product as the sum of two, each over half of the inner dimension K."""
        rows, weights, *bias = inputs
        # A Gemm may store its weights as [N, K]; else they are [K, N].
        halves_of = zip(
            self._halves_along(rows, -1),
            self._halves_along(weights, 1 if is_transposed(node) else 0),
            strict=True,
        )
        products = [
            # The bias of a Gemm is added once.
            self._tape.op(node.op_type, [*pair, *(bias if not number else [])], node.attributes)
            for number, pair in enumerate(halves_of)
        ]
        return self._tape.op("Add", products)

    def _halves_along(self, value: ir.Value | None, axis: int) -> Sequence[ir.Value]:
        return self._tape.op_multi_out(
            "Split", [value], {"axis": axis, "num_outputs": 2}, num_outputs=2
        )

    def _half(self, value: ir.Value) -> ir.Value:
        """Return the value rounded to half precision, computed where the numbers come from."""
        if value not in self._halves:
            if is_weight(value):  # a bias
                self._halves[value] = self._nearest(value)
            elif (node := value.producer()) is not None and (moved := _moved_inputs(node)):
                inputs = list(node.inputs)
                for position in moved:
                    inputs[position] = self._half(_input(node, position))
                self._halves[value] = self._tape.op(node.op_type, inputs, node.attributes)
            else:
                half = self._cast(value, self._type)
                self._halves[value] = (
                    self._cast(half, ir.DataType.FLOAT) if self._emulated else half
                )
        return self._halves[value]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self._tape.op("Cast", [value], {"to": dtype})

    def _mask(self, mask: ir.Value | None) -> ir.Value | None:
        """Return attention's mask in half precision; in an emulation softmax gives the same."""
        if mask is None or self._emulated:
            return mask
        if mask not in self._masks:
            minimum = self._graph.initializers.get("half.min_mask")
            if minimum is None:
                minimum = add_weight(self._graph, "half.min_mask", np.array(_MIN_MASK, np.float32))
            self._masks[mask] = self._cast(self._tape.op("Max", [mask, minimum]), self._type)
        return self._masks[mask]

    def _weight(self, matmul: ir.Node) -> ir.Value:
        name, transposed = key = weight_key(matmul)
        if key not in self._rounded:
            return self._half(_input(matmul, 1))
        if key not in self._weights:
            columns = self._rounded[key]
            suffix = ".columns" if transposed else ""
            self._weights[key] = self._add(name, columns if transposed else columns.T, suffix)
        return self._weights[key]

    def _nearest(self, value: ir.Value) -> ir.Value:
        assert value.name is not None and value.const_value is not None
        return self._add(
            value.name, half_of(value.name, value.const_value.numpy(), self._precision)
        )

    def _add(self, name: str, half: NDArray[Any], suffix: str = "") -> ir.Value:
        """Add a weight, in fp32 if the graph is an emulation."""
        tensor: NDArray[Any] | ir.TensorProtocol = half
        if self._emulated:  # one at a time, when they are written: they are twice as large
            tensor = ir.LazyTensor(
                lambda: ir.tensor(half.astype(np.float32)),
                ir.DataType.FLOAT,
                ir.Shape(half.shape),
            )
        return add_weight(self._graph, f"{name}.{dtype_of(self._precision).name}{suffix}", tensor)


def _moved_inputs(node: ir.Node) -> range:
    """Return the inputs whose numbers the node only moves: none if it computes or reads a weight.

    A Gather from a weight looks up embeddings.
    """
    moved = range(len(node.inputs))[: _MOVES.get(node.op_type, 0)]
    return range(0) if any(is_weight(node.inputs[position]) for position in moved) else moved


def _input(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    assert value is not None
    return value
