"""Advice about tensors of a checkpoint that the model does not use."""

import re
from collections.abc import Sequence

from transformers import PreTrainedModel

from kwise.train.checkpoint.ids import text_config
from kwise.train.checkpoint.stored import StoredTensors

_ADVICE = {
    r"(^|\.)lora_|\.adapter|ia3_|dora_": (
        "merge the adapter into the weights (merge_and_unload in PEFT) and save the model again"
    ),
    r"\.(absmax|quant_map|quant_state|qweight|qzeros|scales|g_idx|SCB|weight_scale(_inv)?)": (
        "the weights are quantised: save them in 16 or 32 bits"
    ),
}
"""Advice about tensors that are not used, by name. The first expression that matches decides."""
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def advice_about(
    refused: Sequence[str], model: PreTrainedModel, stored: StoredTensors, head: str | None
) -> str:
    """Return what to do about tensors that are not used.

    Args:
        refused: Their names.
        model: The model that was loaded from the checkpoint.
        stored: The tensors in the checkpoint's files.
        head: The name of the reward head; None if there is none.
    """
    num_layers = getattr(text_config(model.config), "num_hidden_layers", None)
    layers = [int(match[1]) for name in refused if (match := _LAYER.search(name))]
    if num_layers is not None and layers and max(layers) >= num_layers:
        return f"config.json states {num_layers} layers (num_hidden_layers), and the file has more"
    if f"{head}.bias" in refused:
        return (
            f"the head of this class has no bias, which adds the same number to every reward: "
            f"remove {head}.bias from the file if the rewards may lose it"
        )
    hidden_size = getattr(text_config(model.config), "hidden_size", None)
    heads = [name for name in refused if stored.shapes.get(name) == (1, hidden_size)]
    if heads:
        return f"if {heads[0]} is the reward head, call it {head}.weight in the file"
    if all(name.endswith(".bias") for name in refused):
        return (
            "if they belong to the model, config.json lacks the option that gives these layers a "
            "bias (attention_bias, mlp_bias)"
        )
    for pattern, advice in _ADVICE.items():
        if any(re.search(pattern, name) for name in refused):
            return advice
    return "save a checkpoint without them if they do not belong to the model"
