"""How many floating-point operations a batch needs, and how many this machine does: what times are divided by.

Useful operations are those that no implementation can avoid: each distinct prefix of a batch once through the matrix
products of the weights, and each (token, token before it or itself) once through attention, 4·H·D each. Padding, masked
scores, softmax, norms and copies count nothing. Peak is one large matrix product on the same ONNX Runtime with the same threads.
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

_PEAK_SIZE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Operations of one row, and of one pair of tokens in attention."""

    per_row: int
    per_pair: int

    def of(self, sequences: Sequence[Int64]) -> int:
        """Of a batch of sequences, shared prefixes once."""
        trie = build_trie(sequences)
        return self.per_row * trie.num_nodes + self.per_pair * int((trie.depths + 1).sum())


def cost_of_graph(model_path: Path, num_tile_groups: int) -> Cost:
    """Read from a trie graph: its matrix products with weights, and its heads."""
    graph = onnx.load(model_path, load_external_data=False).graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    products = [
        weights[n.input[1]]
        for n in graph.node
        if n.op_type in ("MatMul", "Gemm") and n.input[1] in weights
    ]
    per_row = sum(
        2 * int(np.prod(shape)) for shape in products if min(shape) > 1
    )  # the head reads a few rows only
    widths = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in graph.input
        if "past." in value.name
    }
    heads = [{a.name: a.i for a in n.attribute} for n in graph.node if n.op_type == "Attention"][
        ::num_tile_groups
    ]
    keys = [width for name, width in widths.items() if name.endswith("key")]
    per_pair = sum(
        4 * h["q_num_heads"] * width // h["kv_num_heads"]
        for h, width in zip(heads, keys, strict=True)
    )
    return Cost(per_row=per_row, per_pair=per_pair)


class Peak:
    """The rate of one 2048³ matrix product in operations a second, measured anew at each call (median of three)."""

    def __init__(self, threads: int) -> None:
        rng = np.random.default_rng(0)
        size = _PEAK_SIZE
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
        self()

    def __call__(self) -> float:
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            self._session.run(None, {"x": self._x})
            seconds.append(time.perf_counter() - started)
        return float(2 * _PEAK_SIZE**3 / statistics.median(seconds))
