"""Export a checkpoint as the padded graph, by Optimum's stock text-classification export.

For bidirectional models, and for models whose attention does not go through transformers'
`AttentionInterface`.
"""

from pathlib import Path

from transformers import PreTrainedModel

from kwise.engine.artifact import MODEL, GraphContract
from kwise.errors import ConfigError
from kwise.export.graph_file import read_graph, write_graph
from kwise.export.graphs.optimum_exporter import export, stock_config
from kwise.export.graphs.rotary import short_longrope
from kwise.export.graphs.tracing import without_tracer_warnings


def export_padded(model: PreTrainedModel, directory: Path) -> GraphContract:
    """Write `model.onnx` and `model.onnx.data`; return the contract of this graph.

    The inputs are int64[B, length]. The output `logits`, float32[B, 1], holds the rewards.

    Raises:
        ConfigError: Optimum does not know the architecture, or not its reward models.
    """
    try:
        config = stock_config(model)
    except ValueError as error:
        raise ConfigError(
            f"Optimum has no padded export of {model.config.model_type} models that give rewards"
        ) from error
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
