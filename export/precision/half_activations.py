"""Compute what lies between two matmuls in half precision, where that costs little fidelity.

`half.py` says which operations these are. Values are fp32 in the source graph; each gets a half.
"""

import onnx_ir as ir

from kwise.engine.precision import Precision
from kwise.export.precision.between_matmuls import (
    depends_on,
    input_of,
    moved_inputs,
    rms_norm,
    silu_gate,
)
from kwise.export.precision.half_weights import TYPES, HalfWeights
from kwise.export.precision.matmuls import is_weight


class HalfActivations:
    """The values of one graph in half precision, by their fp32 values.

    Attributes:
        type: The half precision.
        tape: Gets the nodes that compute halves. The caller adds them to the graph, in the order of
            computation.
    """

    def __init__(self, precision: Precision, weights: HalfWeights, *, emulated: bool) -> None:
        self.type = TYPES[precision]
        self.tape = ir.tape.Tape()
        self._is_fp16 = precision is Precision.FP16
        self._weights = weights
        self._emulated = emulated
        self._halves: dict[ir.Value, ir.Value] = {}
        self._results: set[ir.Value] = set()  # of matmuls and attention, cast to fp32

    def add_result(self, result: ir.Value, half: ir.Value) -> None:
        """Note that the fp32 value `result` is `half`, which a matmul or attention computed."""
        self._halves[result] = half
        self._results.add(result)

    def known_half(self, value: ir.Value) -> ir.Value | None:
        """Return the half of a value if something computes it already."""
        return self._halves.get(value)

    def half(self, value: ir.Value, *, computes: bool) -> ir.Value:
        """Return the value rounded to half precision, computed where the numbers come from.

        Args:
            computes: Compute gates and norms in half precision. Factors of attention are products
                too where rotary embedding is written out, and that must be fp32.
        """
        if value in self._halves:
            return self._halves[value]
        node = value.producer()
        half = None
        if is_weight(value):  # the bias of a Gemm
            return self._weights.nearest(value)
        if node is not None and (moved := moved_inputs(node)):
            inputs = list(node.inputs)
            for position in moved:
                inputs[position] = self.half(input_of(node, position), computes=computes)
            halves = self.tape.op_multi_out(
                node.op_type, inputs, node.attributes, num_outputs=len(node.outputs)
            )
            self._halves.update(zip(node.outputs, halves, strict=True))
            return self._halves[value]
        if node is not None and node.op_type == "Add":
            half = self._biased(node)
        elif node is not None and node.op_type == "Mul" and computes:
            half = self._silu_gate(node) or self._rms_norm(node) or self._gated(node)
        self._halves[value] = half or self.rounded(value)
        return self._halves[value]

    def _biased(self, node: ir.Node) -> ir.Value | None:
        """Return the sum of a matmul's result and its bias."""
        for bias, value in (node.inputs, reversed(node.inputs)):
            if value in self._results and bias is not None and is_weight(bias):
                return self._op("Add", self._halves[value], self._weights.nearest(bias))
        return None

    def _silu_gate(self, node: ir.Node) -> ir.Value | None:
        """Return up * sigmoid(gate) * gate in this order, if the node is such a product, in fp16.

        ONNX Runtime would fuse gate * sigmoid(gate) into a kernel that rounds 1 - sigmoid(-gate) to
        16 bits. In bf16 its Sigmoid does so too.
        """
        operands = silu_gate(node) if self._is_fp16 else None
        if not (operands and self._is_result(operands.gate) and self._is_result(operands.up)):
            return None
        gate, up = (self.half(v, computes=True) for v in (operands.gate, operands.up))
        return self._op("Mul", self._op("Mul", up, self._op("Sigmoid", gate)), gate)

    def _rms_norm(self, node: ir.Node) -> ir.Value | None:
        """Return the output of an RMSNorm, if the node multiplies its scale, in fp16.

        ONNX Runtime fuses these nodes into one that reads fp32 and rounds once. It would do so in
        bf16 too, for which it has no such kernel.
        """
        norm = rms_norm(node) if self._is_fp16 else None
        if norm is None:
            return None
        scale = self._weights.nearest(norm.scale)
        if self._emulated:
            return self._op("Mul", scale, norm.normalised)
        return self._op("Mul", scale, self.rounded(norm.normalised))

    def _gated(self, node: ir.Node) -> ir.Value | None:
        """Return the product of a matmul's result and a gate, which is computed in fp32."""
        for position in (0, 1):
            gate, value = input_of(node, position), input_of(node, 1 - position)
            if is_weight(gate) or not self._is_result(value):
                continue
            half = self.half(value, computes=True)
            if self._is_result(gate):
                return self._op("Mul", self.half(gate, computes=True), half)
            if not depends_on(gate, value, self._results - {value}):  # else it is an activation
                return self._op("Mul", self.rounded(gate), half)
        return None

    def _is_result(self, value: ir.Value) -> bool:
        """Return whether the value is a matmul's result in half precision, or moved from such."""
        if value in self._results:
            return True
        if (node := value.producer()) is None:
            return False
        moved = moved_inputs(node)
        return len(moved) > 0 and all(self._is_result(input_of(node, i)) for i in moved)

    def _op(self, op_type: str, *operands: ir.Value) -> ir.Value:
        """Compute in the half precision; in an emulation, compute in fp32 and round."""
        result = self.tape.op(op_type, operands)
        return self.rounded(result) if self._emulated else result

    def rounded(self, value: ir.Value) -> ir.Value:
        """Cast to the half precision; in an emulation, also back."""
        half = self.cast(value, self.type)
        return self.cast(half, ir.DataType.FLOAT) if self._emulated else half

    def widened(self, half: ir.Value) -> ir.Value:
        """Cast from the half precision to fp32, which an emulation has anyway."""
        return half if self._emulated else self.cast(half, ir.DataType.FLOAT)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.tape.op("Cast", [value], {"to": dtype})
