"""How a reward model is trained."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kwise.engine.errors import ConfigError
from kwise.engine.options import check_bounds, option


class Precision(Enum):
    """What the backbone's matrix products run in. Weights, gradients, optimizer and the reward head stay in float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Overlong(Enum):
    """What happens to a ranking with a conversation over the limit of tokens."""

    ERROR = "error"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run. Raises ConfigError, naming the option and its bound."""

    data: str = option(help="rankings as JSON Lines, .gz too; - for standard input")
    model: str = option(None, "required: a Hugging Face directory, a name on the hub, or a .gguf file to start from")
    output: Path = option(None, "required: directory for the checkpoint")
    epochs: float = option(1.0, "passes over the training rankings", exclusive_minimum=0)
    learning_rate: float = option(5e-5, "peak learning rate of AdamW; falls to 0 linearly", exclusive_minimum=0)
    rankings_per_step: int = option(4, "rankings, each with all its pairs, of one forward and backward pass", minimum=1)
    gradient_accumulation: int = option(1, "passes per optimizer step: a larger batch in the same memory", minimum=1)
    warmup_ratio: float = option(0.1, "part of all steps in which the learning rate rises from 0", minimum=0, maximum=1)
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW", minimum=0)
    validation_fraction: float = option(0.15, "part of the prompts to hold out; 0 for no validation", minimum=0, maximum=0.9)
    seed: int = option(0, "seed of the reward head, of the split and of the order of rankings", minimum=0, maximum=2**32 - 1)
    precision: Precision = option(Precision.AUTO, "auto takes bf16 where the hardware multiplies bf16 matrices")
    max_tokens: int | None = option(None, "longest conversation in tokens (default: the model's own limit)", minimum=1)
    overlong: Overlong = option(Overlong.ERROR, "rankings with a longer conversation: refuse to start, or leave them out")
    chat_template: Path | None = option(None, "file with a Jinja chat template (default: the tokenizer's, else a plain one)")
    resume: bool = option(False, "go on from the newest complete step checkpoint of a run that was stopped")
    overwrite: bool = option(False, "replace what an earlier run wrote to the output directory")
    save_every: int = option(100, "optimizer steps between step checkpoints, three times the weights each", minimum=1)
    log_every: int = option(5, "optimizer steps between lines with the training loss", minimum=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("model", "output"):
            if getattr(self, name) is None:
                raise ConfigError(f"--{name} is missing")
        if self.resume and self.overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")
