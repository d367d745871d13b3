"""The floating-point operations that a batch needs, and the rate that this machine reaches.

Only operations that no implementation can avoid are counted: each distinct prefix of a batch once
through the matmuls with weights, and each pair of a token and one that it attends to once through
attention, 4·H·D operations each. Padding, masked scores, softmax, norms and copies do not count.

The peak rate is that of one large matmul on the same ONNX Runtime with the same threads.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from kwise.engine.trie import Int64, build_trie

PEAK_SIZE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCost:
    """Operations per row (a node of the trie), and per pair of tokens in attention."""

    per_row: int
    per_pair: int

    def of(self, sequences: Sequence[Int64]) -> int:
        """Return the operations of a batch of token sequences; shared prefixes count once."""
        trie = build_trie(sequences)
        return self.per_row * trie.num_nodes + self.per_pair * int((trie.depths + 1).sum())


def cost_of_graph(model_path: Path, num_tile_groups: int) -> GraphCost:
    """Read the cost from the matmuls and attention heads of a trie graph.

    num_tile_groups: the number of Attention calls per layer, of which one is counted.
    """
    graph = onnx.load(model_path, load_external_data=False).graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    matmul_shapes = [
        weights[node.input[1]]
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    ]
    # The head has one output and reads only a few rows.
    per_row = sum(2 * int(np.prod(shape)) for shape in matmul_shapes if min(shape) > 1)
    key_widths = [
        value.type.tensor_type.shape.dim[1].dim_value
        for value in graph.input
        if "past." in value.name and value.name.endswith("key")
    ]
    attention_attributes = [
        {attribute.name: attribute.i for attribute in node.attribute}
        for node in graph.node
        if node.op_type == "Attention"
    ][::num_tile_groups]
    per_pair = sum(
        4 * attributes["q_num_heads"] * width // attributes["kv_num_heads"]
        for attributes, width in zip(attention_attributes, key_widths, strict=True)
    )
    return GraphCost(per_row=per_row, per_pair=per_pair)


class PeakRate:
    """Measures the rate of a 2048³ matmul. A call returns operations per second."""

    def __init__(self, threads: int) -> None:
        rng = np.random.default_rng(0)
        size = PEAK_SIZE
        self._x, weight = (rng.standard_normal((size, size), np.float32) for _ in range(2))
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "peak",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(model.SerializeToString(), options)
        self()  # the first call warms up

    def __call__(self) -> float:
        """Return the median of three measurements, made now."""
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            self._session.run(None, {"x": self._x})
            seconds.append(time.perf_counter() - started)
        return float(2 * PEAK_SIZE**3 / statistics.median(seconds))
