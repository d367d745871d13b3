"""The runtimes that compute a graph: ONNX Runtime and OpenVINO."""

from kwise.libraries.telemetry import disable_telemetry

disable_telemetry()  # before a module of this folder imports onnxruntime
