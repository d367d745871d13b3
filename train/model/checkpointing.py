"""What a pass keeps for its backward pass, and what it computes again there: gradient checkpointing.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost": of each layer its input alone is kept. Or selectively
(Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models"): also the results of attention and of
the products that widen, an MLP's first, which are most of a layer's work and a third of what it keeps; norms, rotary
embeddings, activation functions and the other products are cheap to repeat.
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
_PRODUCTS = {_aten.mm.default: 1, _aten.addmm.default: 2}
"""Which argument is the weight, [inputs, outputs]."""


def keep_less(model: PreTrainedModel, checkpointing: Checkpointing) -> None:
    """Have every layer of `model` checkpointed from now on, while it is in training mode.

    Raises:
        ConfigError: its architecture has no layers that can be.
    """
    if checkpointing is Checkpointing.NONE:
        return
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"--gradient-checkpointing: {type(model).__name__} does not support it")
    # The older, reentrant kind needs inputs with gradients, which frozen weights do not give.
    options: dict[str, Any] = {"use_reentrant": False}
    if checkpointing is Checkpointing.SELECTIVE:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(options)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = operator in _ATTENTION
    if operator in _PRODUCTS:
        num_inputs, num_outputs = args[_PRODUCTS[operator]].shape
        keep = num_outputs > num_inputs
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
