"""Turn off the telemetry of ONNX Runtime, which its wheels from 1.29 on send to their maker.

They write an identifier of the machine below the home directory, and report the process, the model
and how many passes ran. They read the variable once, when the module is imported.
"""

import os


def disable_telemetry() -> None:
    """Make ONNX Runtime send nothing, unless the user's environment decides about it.

    Call this before onnxruntime is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
