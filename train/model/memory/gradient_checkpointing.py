"""Gradient checkpointing: save less in the forward pass, compute it again in the backward pass.

`full` saves only the input of each layer (Chen et al. 2016, "Training Deep Nets with Sublinear
Memory Cost"). `selective` also saves the outputs of attention and of the matmuls that widen, such
as an MLP's first (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models"): most of a layer's work, but a third of its memory. Norms, rotary embeddings, activation
functions and the other matmuls are cheap to repeat.
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from kwise.errors import ConfigError
from kwise.train.options.config import Checkpointing

_aten = torch.ops.aten
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
_MATMULS = {_aten.mm.default: 1, _aten.addmm.default: 2}
"""Operators, and the position of the argument that is the weight, [inputs, outputs]."""


def enable_checkpointing(model: PreTrainedModel, checkpointing: Checkpointing) -> None:
    """Checkpoint every layer of `model` while it is in training mode.

    Raises:
        ConfigError: its architecture does not support it.
    """
    if checkpointing is Checkpointing.NONE:
        return
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"--gradient-checkpointing: {type(model).__name__} does not support it")
    # Reentrant checkpointing needs inputs with gradients, which a model with frozen weights does
    # not have.
    options: dict[str, Any] = {"use_reentrant": False}
    if checkpointing is Checkpointing.SELECTIVE:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    # transformers 5.24 has renamed the method, and warns about the old name.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)(options)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    save = operator in _ATTENTION
    if operator in _MATMULS:
        num_inputs, num_outputs = args[_MATMULS[operator]].shape
        save = num_outputs > num_inputs
    return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE
