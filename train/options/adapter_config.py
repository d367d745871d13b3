"""The options of `kwise train` that train a low-rank adapter instead of all weights. Imports
neither torch nor peft.
"""

from dataclasses import dataclass

from kwise.errors import ConfigError
from kwise.options import option

ALL_LINEAR = "all-linear"


# Without slots: of the two bases of TrainConfig, Python allows one with slots.
@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". `check_adapter`
    says what goes together.
    """

    lora_rank: int = option(
        0,
        "train adapters of this rank and the head, the other weights frozen; 0 trains all weights",
        minimum=0,
    )
    lora_alpha: int | None = option(
        None, "an adapter is scaled by alpha / rank; unset takes twice the rank", minimum=1
    )
    lora_dropout: float = option(0.0, "of what an adapter reads", minimum=0, maximum=0.9)
    lora_targets: str = option(
        ALL_LINEAR, "layers that get an adapter: all-linear, or names as q_proj,v_proj"
    )
    load_in_4bit: bool = option(
        False, "hold the frozen weights in four bits (QLoRA): less memory, less exact"
    )

    @property
    def lora_scale_alpha(self) -> int:
        """`lora_alpha`, or its default."""
        return 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


def check_adapter(config: AdapterConfig) -> None:
    """Raises ConfigError where an option would be ignored."""
    if config.lora_rank:
        return
    for flag, is_set in (
        ("--lora-alpha", config.lora_alpha is not None),
        ("--lora-dropout", config.lora_dropout > 0),
        ("--lora-targets", config.lora_targets != ALL_LINEAR),
        ("--load-in-4bit", config.load_in_4bit),
    ):
        if is_set:
            raise ConfigError(f"{flag} is of --lora-rank; it is 0")
