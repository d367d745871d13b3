"""The options of `kwise train` that train low-rank adapters (LoRA) instead of all weights.

Neither torch nor peft is imported here.
"""

from dataclasses import dataclass

from kwise.errors import ConfigError
from kwise.options import MAX_COUNT, option

ALL_LINEAR = "all-linear"


# Without slots: only one base of TrainConfig can have them.
@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Options of LoRA: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

    `check_adapter` says which ones go together.
    """

    lora_rank: int = option(
        0,
        "train adapters of this rank, and the head, and freeze all other weights; 0 trains all "
        "weights",
        minimum=0,
        maximum=MAX_COUNT,
    )
    lora_alpha: int | None = option(
        None,
        "adapters are scaled by alpha / rank; default: twice the rank",
        minimum=1,
        maximum=MAX_COUNT,
    )
    lora_dropout: float = option(0.0, "dropout on the inputs of adapters", minimum=0, maximum=0.9)
    lora_targets: str = option(
        ALL_LINEAR, "layers that get an adapter: all-linear, or names such as q_proj,v_proj"
    )
    load_in_4bit: bool = option(
        False, "keep the frozen weights in four bits (QLoRA): less memory, less exact"
    )

    @property
    def lora_scale_alpha(self) -> int:
        """Return `lora_alpha` or its default."""
        return 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


def check_adapter(config: AdapterConfig) -> None:
    """Raise ConfigError if an option would have no effect."""
    if config.lora_rank:
        return
    for flag, is_set in (
        ("--lora-alpha", config.lora_alpha is not None),
        ("--lora-dropout", config.lora_dropout > 0),
        ("--lora-targets", config.lora_targets != ALL_LINEAR),
        ("--load-in-4bit", config.load_in_4bit),
    ):
        if is_set:
            raise ConfigError(f"{flag} has no effect without --lora-rank")
