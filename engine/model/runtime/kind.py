"""The names of the runtimes that can run a graph. Imports none of them."""

from enum import Enum


class Runtime(Enum):
    """A library that runs a graph. AUTO leaves the choice to kwise."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
