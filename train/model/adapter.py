"""Low-rank adapters (LoRA) through PEFT, trained beside frozen weights and merged at the end.

PEFT replaces layers of the model in place, so the model's own `forward` runs with the adapters in
both layouts, and all other code keeps using the plain model. Trainer gets PEFT's wrapper, so that
it saves and resumes only the adapter and the head.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install
from kwise.train.checkpoint.pooling import HEADER_KEY, header_of
from kwise.train.model.adapter_source import find_adapter
from kwise.train.model.four_bit import dequantise, fold_adapters
from kwise.train.model.head import reward_head
from kwise.train.model.reward_model import RewardModel
from kwise.train.options.adapter_config import ALL_LINEAR, AdapterConfig

_README = """\
---
base_model: {model}
library_name: peft
---

This is the adapter and the head of the reward model in the parent directory, whose weights have
them merged in. `PeftModel.from_pretrained` adds them to `{model}`, loaded with
`AutoModelForSequenceClassification`, {labels} and {base}, as in training.
"""


def add_adapter(reward_model: RewardModel, config: AdapterConfig) -> Any:
    """Return `reward_model.model` in PEFT's wrapper.

    Trained are adapters of rank `config.lora_rank`, the head, and all other layers that the
    checkpoint did not have. All other weights are frozen.

    Raises:
        ConfigError: peft is not installed, or the model has no layer by the name that
            --lora-targets gives.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigError(f"--lora-rank needs the package peft: {how_to_install('lora')}") from None
    model = reward_model.model
    targets = (
        config.lora_targets
        if config.lora_targets == ALL_LINEAR
        else _layers(model, config.lora_targets)
    )
    lora = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=config.lora_rank,
        lora_alpha=config.lora_scale_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        modules_to_save=_fully_trained(reward_model),
        # GPT-2's weights are transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        adapted = peft.get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(
            f"--lora-targets {config.lora_targets}: {' '.join(str(error).split())[:200]}"
        ) from error
    # PEFT looks this name up on the hub whenever it saves. `save_adapter` sets it.
    lora.base_model_name_or_path = None
    return adapted


def save_adapter(adapted: Any, base_model: str, num_heads: int, directory: Path) -> None:
    """Write adapter and head in the format of `PeftModel.from_pretrained`.

    Their config names `base_model` as the model that they belong to.
    """
    adapted.peft_config["default"].base_model_name_or_path = base_model
    adapted.save_pretrained(directory, save_embedding_layers=False)
    base = (
        "weights in four bits (NF4, double quantisation)"
        if _is_in_four_bits(adapted)
        else "unquantised weights"
    )
    labels = "one label" if num_heads == 1 else f"{num_heads} labels (`num_labels={num_heads}`)"
    text = _README.format(model=base_model, base=base, labels=labels)
    if (source := find_adapter("--model", base_model)) is not None:
        text += f"\n`{base_model}` is an adapter itself: merge it into `{source.base}` first.\n"
    if header_of(adapted.get_base_model().config) is not None:
        text += (
            "\nThe reward is the mean of the head's outputs over the response's tokens "
            f"(`{HEADER_KEY}` in the base model's config.json). transformers' own `forward` reads "
            "the last token, which gives other rewards.\n"
        )
    (directory / "README.md").write_text(text, encoding="utf-8")  # PEFT's is a blank form


def merge_adapter(adapted: Any) -> None:
    """Add the adapters to the weights in place.

    The model that `add_adapter` got is a plain one again, in float32.
    """
    in_four_bits = _is_in_four_bits(adapted)
    fold_adapters(adapted)
    merged: PreTrainedModel = adapted.merge_and_unload()
    if in_four_bits:
        dequantise(merged)
    for parameter in merged.parameters():
        parameter.requires_grad_(True)


def _is_in_four_bits(adapted: Any) -> bool:
    return bool(getattr(adapted, "is_loaded_in_4bit", False))


def _layers(model: PreTrainedModel, targets: str) -> list[str]:
    """Return the names in `targets`.

    Each must be the name of a layer; PEFT only checks that one of them is.
    """
    names = [name.strip() for name in targets.split(",")]
    layers = [name for name, _ in model.named_modules() if name]
    for name in names:
        if not any(f".{layer}".endswith(f".{name}") for layer in layers):
            raise ConfigError(
                f"--lora-targets {name}: {type(model).__name__} has no layer by this name"
            )
    return names


def _fully_trained(reward_model: RewardModel) -> list[str]:
    """Return the layers to train without an adapter.

    PEFT adds `score` and `classifier` by itself.
    """
    known = ("score", "classifier")
    names = {reward_head(reward_model.model)[0], *reward_model.new_layers}
    return sorted(name for name in names if name.split(".")[0] not in known)
