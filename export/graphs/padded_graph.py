"""Export a checkpoint as the padded graph, by Optimum's stock text-classification export.

For bidirectional models, and for models whose attention does not go through transformers'
`AttentionInterface`.
"""

from pathlib import Path

from optimum.exporters.onnx import onnx_export_from_model
from transformers import PreTrainedModel

from kwise.engine.artifact import MODEL, GraphContract
from kwise.errors import ConfigError
from kwise.export.graph_file import read_graph, write_graph
from kwise.export.graphs.tracing import without_tracer_warnings
from kwise.library_errors import cause_of


def export_padded(model: PreTrainedModel, directory: Path) -> GraphContract:
    """Write `model.onnx` and `model.onnx.data`; return the contract of this graph.

    The inputs are int64[B, length]. The output `logits`, float32[B, 1], holds the rewards.

    Raises:
        ConfigError: Optimum does not know the architecture, or not its reward models.
    """
    try:
        with without_tracer_warnings():
            onnx_export_from_model(
                model, directory, task="text-classification", do_validation=False
            )
    except ValueError as error:
        # Optimum goes on with advice for people who extend it.
        reason = cause_of(error).partition(". Please ")[0].partition(", but no custom")[0]
        raise ConfigError(
            f"--layout padded: Optimum cannot export {type(model).__name__}: {reason}"
        ) from error
    # In a file beside the graph runtimes can map the weights, and protobuf's 2 GB limit does not
    # apply.
    write_graph(read_graph(directory / MODEL), directory / MODEL)
    for leftover in directory.iterdir():
        if leftover.name not in (MODEL, f"{MODEL}.data"):
            leftover.unlink()
    return GraphContract(
        file=MODEL,
        reward_output="logits",
        num_tile_groups=0,
        separate_last_tokens=False,
        aligned_keys=False,
    )
