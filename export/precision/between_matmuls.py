"""Recognise what a graph computes between two matmuls: moves of numbers, gates, biases and norms.

`half.py` computes some of these in half precision. The functions here only look at the graph.
"""

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from kwise.export.precision.matmuls import is_weight

# Nodes that only move numbers, and how many of their inputs, from the first, they move.
_MOVES = {
    "Gather": 1,
    "Reshape": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
    "Squeeze": 1,
    "Split": 1,
    "Concat": None,
}
# The nodes from the reciprocal of a root mean square to the numbers themselves.
_RECIPROCAL_RMS = ("Div", "Sqrt", "Add", "ReduceMean", "Pow")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiluGate:
    """The product SiLU(gate) * up, where SiLU(gate) = gate * sigmoid(gate)."""

    gate: ir.Value
    up: ir.Value


@dataclass(frozen=True, slots=True, kw_only=True)
class RmsNorm:
    """The product of a weight and the numbers divided by their root mean square."""

    scale: ir.Value
    normalised: ir.Value


def input_of(node: ir.Node, position: int) -> ir.Value:
    """Return an input that the node must have."""
    value = node.inputs[position]
    assert value is not None
    return value


def moved_inputs(node: ir.Node) -> range:
    """Return the inputs whose numbers the node only moves: none if it computes or reads a weight.

    A Gather from a weight looks up embeddings.
    """
    moved = range(len(node.inputs))[: _MOVES.get(node.op_type, 0)]
    return range(0) if any(is_weight(node.inputs[position]) for position in moved) else moved


def silu_gate(product: ir.Node) -> SiluGate | None:
    """Return the operands if the node multiplies SiLU(gate) by something else."""
    for position in (0, 1) if product.op_type == "Mul" else ():
        silu, up = input_of(product, position).producer(), input_of(product, 1 - position)
        if silu is None or silu.op_type != "Mul":
            continue
        for gate, sigmoid in (silu.inputs, reversed(silu.inputs)):
            node = sigmoid.producer() if sigmoid is not None else None
            if node is not None and node.op_type == "Sigmoid" and node.inputs[0] is gate:
                return SiluGate(gate=input_of(node, 0), up=up)
    return None


def rms_norm(product: ir.Node) -> RmsNorm | None:
    """Return the operands if the node multiplies a weight by normalised numbers."""
    for position in (0, 1) if product.op_type == "Mul" else ():
        scale, value = input_of(product, position), input_of(product, 1 - position)
        node = value.producer()
        if node is not None and node.op_type == "Cast":  # of transformers, from fp32 to fp32
            value = input_of(node, 0)
            node = value.producer()
        if node is None or node.op_type != "Mul" or not is_weight(scale):
            continue
        if any(map(_is_reciprocal_rms, node.inputs)):
            return RmsNorm(scale=scale, normalised=value)
    return None


def _is_reciprocal_rms(value: ir.Value | None) -> bool:
    for op_type in _RECIPROCAL_RMS:
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op_type:
            return False
        # The other input, if there is one, is a constant.
        value = node.inputs[1] if op_type == "Div" else node.inputs[0]
    return True


def depends_on(value: ir.Value, source: ir.Value, ends: Collection[ir.Value]) -> bool:
    """Return whether `value` is computed from `source`, looking no further than `ends`."""
    pending, seen = [value], set[ir.Value]()
    while pending:
        value = pending.pop()
        if value is source:
            return True
        node = value.producer()
        if value in seen or value in ends or node is None:
            continue
        seen.add(value)
        pending.extend(operand for operand in node.inputs if operand is not None)
    return False
