"""Export a checkpoint as the padded graph, by Optimum's stock text-classification export.

For bidirectional models, and for models whose attention does not go through transformers'
`AttentionInterface`.
"""

from pathlib import Path

from transformers import PreTrainedModel

from kwise.engine.artifact.manifest import GraphContract
from kwise.engine.artifact.names import MODEL
from kwise.errors import ConfigError
from kwise.export.graph_file import read_graph, write_graph
from kwise.export.graphs.optimum_exporter import OnnxConfig, export, stock_config
from kwise.export.graphs.rotary import short_longrope
from kwise.export.graphs.tracing import without_tracer_warnings


def export_padded(
    model: PreTrainedModel, directory: Path, *, with_type_ids: bool = True
) -> GraphContract:
    """Write `model.onnx` and `model.onnx.data`; return the contract of this graph.

    The inputs are int64[B, length]. The output `logits`, float32[B, 1], or float32[B, M] with M
    members, holds the rewards.

    Args:
        model: the model.
        directory: where to write.
        with_type_ids: the graph has the input `token_type_ids` if the model takes it. Without this
            input all tokens have type 0.

    Raises:
        ConfigError: Optimum does not know the architecture, or not its reward models.
    """
    try:
        config = stock_config(model)
    except ValueError as error:
        raise ConfigError(
            f"Optimum has no padded export of {model.config.model_type} models that give rewards"
        ) from error
    if not with_type_ids:
        _leave_out_type_ids(config)
    with without_tracer_warnings(), short_longrope(model):
        export(model, config, directory / MODEL)
    # In a file beside the graph runtimes can map the weights, and protobuf's 2 GB limit does not
    # apply.
    write_graph(read_graph(directory / MODEL), directory / MODEL)
    return GraphContract(
        file=MODEL,
        reward_output="logits",
        num_tile_groups=0,
        separate_last_tokens=False,
        aligned_keys=False,
    )


def _leave_out_type_ids(config: OnnxConfig) -> None:
    """Remove the input `token_type_ids` from a graph's description.

    Its inputs are a property, computed from the class.
    """
    inputs = {name: axes for name, axes in config.inputs.items() if name != "token_type_ids"}
    kind = type(config)
    config.__class__ = type(kind.__name__, (kind,), {"inputs": inputs})
