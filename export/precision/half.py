"""Turn a graph in fp32 into one in fp16 or bf16.

The matmuls with weights and attention are computed in the half precision. Between them are in the
half precision:

- what only moves numbers, and the keys and values for the prompt cache;
- the product of a gate and what it gates. In fp16 the gate's SiLU too; in bf16 SiLU is fp32;
- the sum of a value and its bias;
- in fp16 the output of an RMSNorm, and its scale.

The residual stream, the norms' insides, softmax, rotary embedding, other activations and the head
are fp32, because their rounding would add up over the layers. docs/precisions.md says what each
choice costs and saves.

Where fp32 meets the half precision, numbers are cast. Hardware sums up products in fp32 inside, in
an order of its own; a GPU may round partial sums to the half precision unless it is told not to
(docs/gpu.md).

With `emulated` the graph rounds in the same places and computes in fp32. It runs everywhere and
gives the rewards of hardware that sums up in fp32 and in the same order for every batch, so an
export can measure what it writes on a machine that cannot run it. With `split_sums` the emulation
sums up in another order, which shows what a GPU's choice of order changes.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from kwise.engine.precision import Precision
from kwise.export.graph_file import add_weight, read_graph, write_graph
from kwise.export.precision.between_matmuls import input_of, moved_inputs
from kwise.export.precision.half_activations import HalfActivations
from kwise.export.precision.half_weights import HalfWeights
from kwise.export.precision.matmuls import (
    ATTENTION,
    NONE_ROUNDED,
    RoundedWeights,
    attention_nodes,
    is_matmul,
    is_transposed,
    layer_group,
)

# The mask of the trie's attention has -1e9 where a query must not look. That is -inf in fp16, and
# softmax of a row of -inf is NaN.
_MIN_MASK = -60000.0


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
        emulated: Write weights and results in fp32, rounded to the precision.
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
            continue
        if group not in fp32_layers:
            caster.replace(node)
    caster.finish()
    write_graph(model, destination)


class _Caster:
    """Replaces matmuls of one graph, in the order of computation, by half-precision ones."""

    def __init__(
        self,
        graph: ir.Graph,
        precision: Precision,
        rounded: RoundedWeights,
        emulated: bool,
        split_sums: bool,
    ) -> None:
        self._graph = graph
        self._weights = HalfWeights(graph, precision, rounded, emulated)
        self._emulated = emulated
        self._split_sums = split_sums
        self._activations = HalfActivations(precision, self._weights, emulated=emulated)
        self._masks: dict[ir.Value, ir.Value] = {}

    def replace(self, node: ir.Node) -> None:
        """Compute the node's product in half precision and cast its result to fp32."""
        self._activations.tape = ir.tape.Tape()
        inputs, attributes = list(node.inputs), dict(node.attributes)
        has_weights = is_matmul(node)
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
            if value is not None and not (position == 1 and has_weights):
                inputs[position] = self._activations.half(value, computes=has_weights)
        if has_weights:
            inputs[1] = self._weights.of_matmul(node)
        if self._split_sums and has_weights:
            product = self._sum_of_halves(node, inputs)
        else:
            product = self._tape.op(node.op_type, inputs, attributes, domain=node.domain)
        half = self._activations.rounded(product) if self._emulated else product
        result = self._activations.widened(half)
        self._activations.add_result(result, half)
        self._replace_node(node, result)

    def finish(self) -> None:
        """Let what reads the shape of a value, or caches it, read its half.

        The fp32 value then need not be computed. Cached keys and values are only read by attention,
        which rounds them, so that this changes no reward.
        """
        for output in tuple(self._graph.outputs):
            node = output.producer()
            if node is None or not (output.name or "").startswith("present."):
                continue
            moved = moved_inputs(node)
            if moved and all(self._activations.known_half(input_of(node, i)) for i in moved):
                self._activations.tape = ir.tape.Tape()
                self._replace_node(
                    node, self._activations.widened(self._activations.half(output, computes=False))
                )
        for node in self._graph:
            if node.op_type == "Shape" and (
                half := self._activations.known_half(input_of(node, 0))
            ):
                node.replace_input_with(0, half)
        self._graph.sort()

    @property
    def _tape(self) -> ir.tape.Tape:
        """The nodes that replace the current one."""
        return self._activations.tape

    def _replace_node(self, node: ir.Node, result: ir.Value) -> None:
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

    def _mask(self, mask: ir.Value | None) -> ir.Value | None:
        """Return attention's mask in half precision; in an emulation softmax gives the same."""
        if mask is None or self._emulated:
            return mask
        if mask not in self._masks:
            minimum = self._graph.initializers.get("half.min_mask")
            if minimum is None:
                minimum = add_weight(self._graph, "half.min_mask", np.array(_MIN_MASK, np.float32))
            self._masks[mask] = self._activations.cast(
                self._tape.op("Max", [mask, minimum]), self._activations.type
            )
        return self._masks[mask]
