"""Optimum's ONNX exporter, with transformers 4.57 and with transformers 5.

optimum-onnx 0.1.0 was written for transformers 4. It imports three names that transformers 5 moved
or removed, and while it traces, it replaces functions of transformers by traceable ones with the
signatures of version 4. With transformers 5 this module supplies the names and keeps transformers'
own functions, which are traceable there. The other modules import Optimum from here, so nothing
else depends on the version. https://github.com/huggingface/optimum-onnx/issues/114 asks for support
in Optimum itself.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kwise.train.checkpoint.transformers_versions import IS_TRANSFORMERS_5


def _supply_names() -> None:
    """Add the names that optimum-onnx 0.1.0 imports and transformers 5 lacks."""
    from transformers import modeling_utils
    from transformers.utils import generic, output_capturing

    # For models that can return the states of each layer, which no graph here does.
    _set_default(generic, "_CAN_RECORD_REGISTRY", {})
    _set_default(generic, "OutputRecorder", output_capturing.OutputRecorder)
    _set_default(modeling_utils, "get_parameter_dtype", _parameter_dtype)


def _set_default(module: Any, name: str, value: Any) -> None:
    if not hasattr(module, name):
        setattr(module, name, value)


def _parameter_dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _keep_own_functions() -> None:
    """Let Optimum put transformers 5's own masks and cache where it would put replacements."""
    from optimum.exporters.onnx import model_patcher

    # The masks of version 4 use vmap, which cannot be traced.
    model_patcher.sdpa_mask_without_vmap = model_patcher.sdpa_mask
    model_patcher.eager_mask_without_vmap = model_patcher.eager_mask
    model_patcher.patched_dynamic_layer_update = model_patcher.DynamicLayer.update


if IS_TRANSFORMERS_5:
    _supply_names()

from optimum.exporters.onnx import export  # noqa: E402
from optimum.exporters.onnx.base import OnnxConfig  # noqa: E402
from optimum.exporters.onnx.model_patcher import PatchingSpec  # noqa: E402
from optimum.exporters.tasks import TasksManager  # noqa: E402
from optimum.utils import NormalizedTextConfig  # noqa: E402

if IS_TRANSFORMERS_5:
    _keep_own_functions()

__all__ = ["NormalizedTextConfig", "OnnxConfig", "PatchingSpec", "export", "stock_config"]


def stock_config(model: PreTrainedModel) -> OnnxConfig:
    """Return Optimum's own description of the model's graph for text classification.

    Raises:
        ValueError: Optimum does not know the architecture, or not for this task.
    """
    if model.config.model_type not in TasksManager._SUPPORTED_MODEL_TYPE:
        raise ValueError(f"it does not know the architecture {model.config.model_type}")
    make_config = TasksManager.get_exporter_config_constructor(
        "onnx", model=model, task="text-classification", library_name="transformers"
    )
    return make_config(model.config, float_dtype="fp32")
