"""Read and write ONNX graphs whose weights lie in a file beside them.

Weights are memory-mapped when a graph is read, and written one at a time, so a model is never in
memory twice and protobuf's limit of 2 GB does not apply.
"""

from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

# Runtimes map the file's pages.
_ALIGNMENT = 4096
# Shapes and scalars stay in the graph itself, because runtimes infer shapes from some of them.
_MAX_INLINE_BYTES = 64


def read_graph(path: Path) -> ir.Model:
    """Read a graph and map its weights.

    The exporter writes an Identity node for each further layer that shares a weight. These are
    removed, so that all layers read the weight itself. (onnx-ir's IdentityEliminationPass fails on
    branches of an If that return an outer value, as in DeBERTa.)
    """
    model = ir.load(path)
    for node in model.graph:
        if node.op_type == "Identity" and not node.outputs[0].is_graph_output():
            value = node.inputs[0]
            if value is not None and value.is_initializer():
                node.outputs[0].replace_all_uses_with(value)
                model.graph.remove(node, safe=True)
    return model


def write_graph(model: ir.Model, path: Path) -> None:
    """Write a graph, without the nodes and weights that lead to no output.

    The weights are written to `path` with ".data" appended. A file that is already there is
    replaced and not written over, because a session may have mapped it.
    """
    RemoveUnusedNodesPass()(model)
    ir.save(
        model,
        path,
        external_data=f"{path.name}.data",
        size_threshold_bytes=_MAX_INLINE_BYTES,
        alignment=_ALIGNMENT,
        align_threshold=0,
    )


def add_weight(graph: ir.Graph, name: str, tensor: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """Add an initializer and return its value.

    Raises:
        ValueError: The graph has another initializer of this name.
    """
    tensor = ir.tensor(tensor, name=name)
    tensor.name = name
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
