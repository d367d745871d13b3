"""Low-rank adapters through PEFT: trained beside frozen weights, merged into them at the end.

The layers of the model are replaced in place, so its own `forward` runs with the adapters, over the trie as padded, and everything
else keeps working with the plain model. `Trainer` gets the wrapper, of which it saves and resumes the adapter and the head alone.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kwise.errors import ConfigError
from kwise.train.model.four_bit import dequantise, fold_adapters
from kwise.train.model.reward_model import RewardModel, reward_head
from kwise.train.options.adapter_config import ALL_LINEAR, AdapterConfig

_README = """\
---
base_model: {model}
library_name: peft
---

The adapter and the head of the reward model beside this folder, whose weights have them merged in. `PeftModel.from_pretrained`
reads them onto `{model}`, loaded by `AutoModelForSequenceClassification` with one label and {base}: beside these they were trained.
"""


def add_adapter(reward_model: RewardModel, config: AdapterConfig) -> Any:
    """`reward_model.model` in PEFT's wrapper: adapters of rank `config.lora_rank`, and the head and whatever else the checkpoint
    did not have, are trained; the rest is frozen.

    Raises:
        ConfigError: peft is not installed, or the model has no layer of such a name.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigError("--lora-rank needs the package peft: pip install 'kwise[lora]'") from None
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
        modules_to_save=_trained_whole(reward_model),
        # GPT-2's layers have their weights the other way round.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        adapted = peft.get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(
            f"--lora-targets {config.lora_targets}: {' '.join(str(error).split())[:200]}"
        ) from error
    # PEFT looks a base model up on the hub when it saves; the adapter's config has its name in the end.
    lora.base_model_name_or_path = None
    return adapted


def save_adapter(adapted: Any, base_model: str, directory: Path) -> None:
    """Write what `PeftModel.from_pretrained(base, directory)` reads; `base_model` is noted as what it belongs to."""
    adapted.peft_config["default"].base_model_name_or_path = base_model
    adapted.save_pretrained(directory, save_embedding_layers=False)
    base = (
        "its weights in four bits (NF4, double quantisation)"
        if _is_in_four_bits(adapted)
        else "its weights as they are"
    )
    (directory / "README.md").write_text(
        _README.format(model=base_model, base=base), encoding="utf-8"
    )  # PEFT's is a blank form


def merge_adapter(adapted: Any) -> None:
    """Add the adapters to the weights, in place: the model that was given to `add_adapter` is a plain one again, without layers of
    four bits."""
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
    """The names in `targets`, each of which has to be some layer's: PEFT is content with one that is."""
    names = [name.strip() for name in targets.split(",")]
    layers = [name for name, _ in model.named_modules() if name]
    for name in names:
        if not any(f".{layer}".endswith(f".{name}") for layer in layers):
            raise ConfigError(
                f"--lora-targets {name}: {type(model).__name__} has no layer of this name"
            )
    return names


def _trained_whole(reward_model: RewardModel) -> list[str]:
    """PEFT adds `score` and `classifier` by itself; this is for poolers, and for heads by another name."""
    known = ("score", "classifier")
    names = {reward_head(reward_model.model)[0], *reward_model.new_layers}
    return sorted(name for name in names if name.split(".")[0] not in known)
