"""Rewrite a trie graph for CUDA: one tile group, causal attention, the prompt cache on the device.

On CUDA, ONNX Runtime computes Attention with flash attention only if the node has no mask, and the
launches of eight tile groups cost more than the padding that they avoid. With aligned keys
(see `kwise.engine.model.packing.pack`) a tile's keys are one path of the trie and its queries are
the last nodes of that path. So each query sees the keys up to its own, which is causal attention
aligned at the lower right corner. Attention of opset 24 computes it from the number of keys of each
tile (`nonpad_kv_seqlen`). Layers with a sliding window keep their mask.

See device_cache.py for the prompt cache.
"""

from pathlib import Path

import onnx_ir as ir
from msgspec import structs
from onnx_ir.passes.common import RemoveUnusedNodesPass

from kwise.engine.artifact.manifest import GraphContract
from kwise.engine.artifact.names import cuda_graph_name
from kwise.export.graph_file import read_graph
from kwise.export.graphs.device_cache import keep_cache_on_device

_OPSET = 24
_MASK, _KEY_LENGTHS = 3, 6  # the places of Attention's inputs
# What may lie between an Attention node and the node that joins the tile groups.
_BETWEEN = {"Reshape", "Cast"}


def write_cuda_graph(directory: Path, contract: GraphContract) -> GraphContract:
    """Write the variant of a trie graph for CUDA beside it. It reads the same file of weights.

    Args:
        directory: The directory of the graph.
        contract: The contract of the graph.

    Returns:
        The contract of the variant.
    """
    model = read_graph(directory / contract.file)
    graph = model.graph
    for node in graph:
        if node.op_type == "Concat":
            _keep_first_group(node)
    RemoveUnusedNodesPass()(model)
    lengths = ir.val("lengths.0", ir.DataType.INT64, ["num_tiles"])
    for node in graph:
        if node.op_type == "Attention" and not _has_window(node):
            node.resize_inputs(_KEY_LENGTHS + 1)
            node.replace_input_with(_MASK, None)
            node.replace_input_with(_KEY_LENGTHS, lengths)
            node.attributes.add(ir.AttrInt64("is_causal", 1))
    graph.inputs.append(lengths)
    keep_cache_on_device(graph)
    RemoveUnusedNodesPass()(model)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    model.opset_imports[""] = _OPSET
    name = cuda_graph_name(contract.file)
    ir.save(model, directory / name)  # weights in a file of their own stay where they are
    return structs.replace(contract, file=name, num_tile_groups=1, aligned_keys=True)


def _keep_first_group(concat: ir.Node) -> None:
    """Replace a Concat of the tile groups' attention by the attention of the first group."""
    groups = [_attention_group(value) for value in concat.inputs]
    if 0 in groups and None not in groups:
        (first,) = (value for value, group in zip(concat.inputs, groups, strict=True) if not group)
        assert first is not None
        concat.outputs[0].replace_all_uses_with(first)


def _attention_group(value: ir.Value | None) -> int | None:
    """Return the tile group whose attention the value is; None if it is not attention."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _BETWEEN:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "Attention":
        return None
    (queries,) = (name for name in _sources(node.inputs[_MASK]) if name.startswith("queries."))
    return int(queries.removeprefix("queries."))


def _has_window(attention: ir.Node) -> bool:
    """Return whether the node's mask compares positions, as that of a sliding window does."""
    return "positions" in _sources(attention.inputs[_MASK])


def _sources(value: ir.Value | None) -> set[str]:
    """Return the names of the graph's inputs and initializers that the value depends on."""
    sources, seen = set(), set()
    pending = [value]
    while pending:
        value = pending.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if (node := value.producer()) is None:
            sources.add(value.name or "")
        else:
            pending.extend(node.inputs)
    return sources
