"""The tensors of a checkpoint as the class that its config.json names has them."""

import copy

import torch
import transformers
from transformers import PreTrainedModel


def own_heads(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the heads of the language model that `model` was made from.

    They are the tensors outside of its backbone, in whose place the reward head is. The class is
    made without memory for its weights. Empty if config.json names no language model that
    transformers has, or one whose class does not name its backbone.
    """
    own = next(iter(model.config.architectures or ()), type(model).__name__)
    kind = getattr(transformers, own, None)
    if own == type(model).__name__ or kind is None:
        return {}
    try:
        with torch.device("meta"):
            language_model = kind(copy.deepcopy(model.config))
    except Exception:  # noqa: BLE001 - then its tensors count as unknown, and are refused
        return {}
    if language_model.base_model is language_model:
        return {}
    backbone = f"{language_model.base_model_prefix}."
    return {
        name: tuple(tensor.shape)
        for name, tensor in language_model.state_dict().items()
        if not name.startswith(backbone)
    }
