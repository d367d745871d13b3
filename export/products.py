"""What lower precisions are for: a graph's products, by kind."""

import re
from pathlib import Path

import onnx

from kwise.export.weights import Rewriting

ATTENTION = "attention"
"""The kind of the products of queries with keys, and of what they weigh with values."""


def is_product(graph: Rewriting, node: onnx.NodeProto) -> bool:
    """Whether the node multiplies rows with a matrix of weights. The head's column is none: it reads one row a sequence."""
    if node.op_type not in ("MatMul", "Gemm") or not graph.is_weight(node.input[1]):
        return False
    shape = graph.shape(node.input[1])
    return len(shape) == 2 and min(shape) > 1


def is_attention(graph: Rewriting, node: onnx.NodeProto) -> bool:
    """Attention, or, where it is written out as in the padded layout, one of its products: neither factor is a weight."""
    return node.op_type == "Attention" or (node.op_type == "MatMul" and not any(map(graph.is_weight, node.input)))


def kinds(source: Path, *, attention: bool) -> dict[str, int]:
    """The kinds of products, those of one name in all layers, and how many weights each has; with `attention` also that, as
    if it had as many as the average kind."""
    graph = Rewriting(source, source)
    sizes: dict[str, int] = {}
    for node in graph.nodes:
        if is_product(graph, node):
            rows, columns = graph.shape(node.input[1])
            kind = kind_of(node)
            sizes[kind] = sizes.get(kind, 0) + rows * columns
    if attention and sizes and any(is_attention(graph, node) for node in graph.nodes):
        sizes[ATTENTION] = sum(sizes.values()) // len(sizes)
    return sizes


def kind_of(node: onnx.NodeProto) -> str:
    """ "layers.*.mlp.down_proj" of a product with "model.layers.3.mlp.down_proj.weight.transposed". A weight that the exporter
    gave a number for a name goes by its node's: "/bert/encoder/layer.*/attention/self/query/MatMul"."""
    weight = node.input[1]
    if weight.startswith("onnx::"):
        return re.sub(r"([./])\d+(?=[./])", r"\1*", node.name)
    return re.sub(r"\.\d+\.", ".*.", weight).removeprefix("model.").removesuffix(".transposed").removesuffix(".weight")
