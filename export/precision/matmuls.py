"""What lower precisions are for: a graph's products, by kind."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from kwise.export.weights import Rewriting

ATTENTION = "attention"
"""The kind of the products of queries with keys, and of what they weigh with values."""
WeightKey = tuple[str, bool]
Rounded = Mapping[WeightKey, NDArray[Any]]
"""Weights that were rounded beforehand, as [N, K], a row for each output channel."""
NEAREST: Rounded = MappingProxyType({})
_BESIDE_SOFTMAX = {"Mul", "Div", "Add", "Where", "Cast", "IsNaN"}


def is_product(graph: Rewriting, node: onnx.NodeProto) -> bool:
    """Whether the node multiplies rows with a matrix of weights. The head's column is none: it reads one row a sequence."""
    if node.op_type not in ("MatMul", "Gemm") or not graph.is_weight(node.input[1]):
        return False
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = (
        not attributes.get("transA")
        and attributes.get("alpha", 1) == attributes.get("beta", 1) == 1
    )
    shape = graph.shape(node.input[1])
    return plain and len(shape) == 2 and min(shape) > 1


def is_transposed(product: onnx.NodeProto) -> bool:
    """Whether the weights are [outputs, inputs], as a Gemm may have them."""
    return any(attribute.name == "transB" and attribute.i for attribute in product.attribute)


def weight_key(product: onnx.NodeProto) -> WeightKey:
    """(the weight's name, whether this product reads it as [N, K])."""
    return product.input[1], is_transposed(product)


def columns_of(graph: Rewriting, product: onnx.NodeProto) -> NDArray[Any]:
    """The product's weights as [N, K], a row for each output channel."""
    weight = graph.weight(product.input[1])
    return weight if is_transposed(product) else weight.T


def attention_products(graph: Rewriting) -> set[str]:
    """The outputs of what is attention: the operator, or, where it is written out as in the padded layout, the products of two
    activations before and after a softmax. Others, such as of positions with rotary frequencies, are none: they want all bits."""
    found = {node.output[0] for node in graph.nodes if node.op_type == "Attention"}
    if found:
        return found
    made_by = {name: node for node in graph.nodes for name in node.output}
    read_by: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        for name in node.input:
            read_by.setdefault(name, []).append(node)
    for node in graph.nodes:
        if node.op_type == "MatMul" and not any(map(graph.is_weight, node.input)):
            before = _through(
                node.input[0],
                lambda name: [made_by[name]] if name in made_by else [],
                forward=False,
            )
            after = _through(node.output[0], lambda name: read_by.get(name, []), forward=True)
            if before or after:
                found.add(node.output[0])
    return found


def _through(
    name: str, neighbours: Callable[[str], list[onnx.NodeProto]], *, forward: bool
) -> bool:
    """Whether a softmax is reached through nothing but scaling, masking and casts."""
    for node in neighbours(name):
        if node.op_type == "Softmax":
            return True
        if node.op_type in _BESIDE_SOFTMAX:
            names = node.output if forward else node.input
            if any(_through(other, neighbours, forward=forward) for other in names):
                return True
    return False


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
    if attention and sizes and attention_products(graph):
        sizes[ATTENTION] = sum(sizes.values()) // len(sizes)
    return sizes


def kind_of(node: onnx.NodeProto) -> str:
    """ "layers.*.mlp.down_proj" of a product with "model.layers.3.mlp.down_proj.weight.transposed". A weight that the exporter
    gave a number for a name goes by its node's: "/bert/encoder/layer.*/attention/self/query/MatMul"."""
    weight = node.input[1]
    if weight.startswith("onnx::"):
        return re.sub(r"([./])\d+(?=[./])", r"\1*", node.name)
    return (
        re.sub(r"\.\d+\.", ".*.", weight)
        .removeprefix("model.")
        .removesuffix(".transposed")
        .removesuffix(".weight")
    )
