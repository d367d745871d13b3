"""The runtimes that can execute a graph, by name. Imports none of them."""

from enum import Enum


class Runtime(Enum):
    """What runs a graph."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
