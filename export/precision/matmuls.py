"""Find the matrix products of a graph, their weights, and the groups of layers that they belong to.

A matmul here is a MatMul or Gemm node that multiplies rows of activations by a matrix of weights.
Lower precisions compute these, and the products inside attention.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from kwise.export.graph_file import read_graph
from kwise.train.model.head import HEAD_NAMES

ATTENTION = "attention"
"""The layer group of attention: queries by keys, and softmax by values."""
WeightKey = tuple[str, bool]
"""A weight's name, and whether the graph stores it as [N, K]: N output channels, K inputs."""
RoundedWeights = Mapping[WeightKey, NDArray[Any]]
"""Weights that were rounded beforehand, each [N, K]."""
NONE_ROUNDED: RoundedWeights = MappingProxyType({})
_BESIDE_SOFTMAX = {"Mul", "Div", "Add", "Where", "Cast", "IsNaN"}


def is_matmul(node: ir.Node) -> bool:
    """Return whether the node multiplies rows of activations by a matrix of weights.

    The reward head is left out, because its rounding would change every reward and a lower
    precision would save no time there; so are matrices of one column, the gates of shared experts.
    """
    if node.op_type not in ("MatMul", "Gemm") or node.domain:
        return False
    if not is_weight(node.inputs[1]):
        return False
    attributes = node.attributes
    scaled = attributes.get_float("alpha", 1.0) != 1 or attributes.get_float("beta", 1.0) != 1
    if scaled or ("transA" in attributes and attributes["transA"].as_int()):
        return False
    shape = weight_of(node).shape
    return len(shape) == 2 and min(shape.numpy()) > 1 and not _is_head(node)


def _is_head(matmul: ir.Node) -> bool:
    """Return whether the matmul is the reward head of a model with members."""
    name = layer_group(matmul).strip("/").replace("/", ".")
    return name.removesuffix(".MatMul").removesuffix(".Gemm") in HEAD_NAMES


def is_weight(value: ir.Value | None) -> bool:
    """Return whether a value is stored with the graph."""
    return value is not None and value.const_value is not None and value.is_initializer()


def is_transposed(matmul: ir.Node) -> bool:
    """Return whether the weights are stored as [N, K], as a Gemm may have them."""
    return bool(matmul.attributes.get_int("transB", 0))


def weight_of(matmul: ir.Node) -> ir.TensorProtocol:
    """Return the weights as they are stored."""
    value = matmul.inputs[1]
    assert value is not None and value.const_value is not None
    return value.const_value


def weight_key(matmul: ir.Node) -> WeightKey:
    """Return what identifies the weights in every copy of the graph."""
    weight = matmul.inputs[1]
    assert weight is not None and weight.name
    return weight.name, is_transposed(matmul)


def columns_of(matmul: ir.Node) -> NDArray[Any]:
    """Return the weights as [N, K], a row for each output channel: a view of the file."""
    weight = weight_of(matmul).numpy()
    return weight if is_transposed(matmul) else weight.T


def attention_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute attention.

    In the trie layout these are Attention operators. The padded layout has attention written out:
    there they are the products of two activations just before and after a softmax. Other products
    of activations, such as positions by rotary frequencies, need all bits of fp32.
    """
    operators = {node for node in graph if node.op_type == "Attention"}
    if operators:
        return operators
    return {
        node
        for node in graph
        if node.op_type == "MatMul"
        and not any(map(is_weight, node.inputs))
        and (_follows_softmax(node.inputs[0]) or _precedes_softmax(node.outputs[0]))
    }


def _follows_softmax(value: ir.Value | None) -> bool:
    """Return whether nothing but scaling, masking and casts lies between a softmax and `value`."""
    node = value.producer() if value is not None else None
    if node is None:
        return False
    return node.op_type == "Softmax" or (
        node.op_type in _BESIDE_SOFTMAX and any(map(_follows_softmax, node.inputs))
    )


def _precedes_softmax(value: ir.Value) -> bool:
    """Return whether nothing but scaling, masking and casts lies between `value` and a softmax."""
    return any(
        node.op_type == "Softmax"
        or (node.op_type in _BESIDE_SOFTMAX and any(map(_precedes_softmax, node.outputs)))
        for node in value.consumers()
    )


def layer_groups(source: Path, *, attention: bool) -> dict[str, int]:
    """Return the layer groups of a graph and the number of weights in each.

    A layer group is the matmuls of one name in all layers. With `attention`, that is a group too,
    and counts as many weights as the average group.
    """
    graph = read_graph(source).graph
    sizes: dict[str, int] = {}
    for node in graph:
        if is_matmul(node):
            group = layer_group(node)
            sizes[group] = sizes.get(group, 0) + weight_of(node).size
    if attention and sizes and attention_nodes(graph):
        sizes[ATTENTION] = sum(sizes.values()) // len(sizes)
    return sizes


def layer_group(matmul: ir.Node) -> str:
    """Return "layers.*.mlp.down_proj" for weights "model.layers.3.mlp.down_proj.weight.transposed".

    If the exporter numbered the weights ("onnx::MatMul_312"), the node's name tells:
    "/bert/encoder/layer.*/attention/self/query/MatMul".
    """
    weight, _ = weight_key(matmul)
    if weight.startswith("onnx::"):
        return re.sub(r"([./])\d+(?=[./])", r"\1*", matmul.name or "")
    group = re.sub(r"\.\d+\.", ".*.", weight).removeprefix("model.")
    return group.removesuffix(".transposed").removesuffix(".weight")
