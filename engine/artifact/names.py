"""The names of the files of an artifact."""

from kwise.engine.precision import Precision

MANIFEST = "manifest.json"
MODEL = "model.onnx"  # the fp32 graph
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"

GOLDEN = "golden.jsonl"


def graph_name(precision: Precision) -> str:
    """Return the file name that the exporter gives a precision's graph."""
    return MODEL if precision is Precision.FP32 else f"model.{precision.value}.onnx"


def cuda_graph_name(graph: str) -> str:
    """Return the file name that the exporter gives the variant for CUDA of the graph `graph`."""
    return f"{graph.removesuffix('.onnx')}.cuda.onnx"


def data_name(graph: str) -> str:
    """Return the name of the weights file of the graph file `graph`.

    The graph refers to it by this name. The graph of a small model may hold its weights itself.
    """
    return f"{graph}.data"
