"""The options of `kwise train`. Imports no torch: `--help` and a wrong option are answered at once."""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kwise.errors import ConfigError
from kwise.options import check_bounds, option
from kwise.train.options.adapter_config import AdapterConfig, check_adapter
from kwise.train.options.objectives import ObjectiveConfig, check_objective


class Precision(Enum):
    """Of the backbone's matrix products; weights, optimizer state, residual stream, head and loss
    are float32 always.
    """

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Schedule(Enum):
    """How the learning rate goes from its peak to `final_learning_rate_ratio` times it, after the
    warm-up.
    """

    COSINE = "cosine"
    LINEAR = "linear"


class Checkpointing(Enum):
    """Of each layer; see recompute.py."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class Overlong(Enum):
    """What to do with a ranking that has a conversation over the limit."""

    ERROR = "error"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(ObjectiveConfig, AdapterConfig):
    """One training run. `recipe` is where options are from: the command line reads it, the report
    names it.

    Raises:
        ConfigError: an option is missing or out of range.
    """

    data: str = option(help="rankings as JSON Lines, .gz or not; - reads standard input")
    model: str = option(
        None,
        "required: the model to start from, a Hugging Face directory, a hub name or a .gguf file",
    )
    output: Path = option(
        None, "required: directory for the checkpoint, training_report.json and, meanwhile, steps/"
    )
    recipe: str = option(
        "",
        "options of a published run as defaults, by its name (--list-recipes), or of a .yaml file",
    )
    chat_template: Path | None = option(
        None, "Jinja file to use in place of the model's own chat template"
    )
    epochs: float = option(
        1.0, "passes over the rankings; more overfit soon", exclusive_minimum=0, maximum=1e6
    )
    learning_rate: float = option(
        3e-5,
        "peak of the schedule; larger models take less, LoRA more",
        exclusive_minimum=0,
        maximum=1,
    )
    schedule: Schedule = option(Schedule.COSINE, "how the learning rate falls after the warm-up")
    final_learning_rate_ratio: float = option(
        0.0, "part of the learning rate that is left at the end", minimum=0, maximum=0.99
    )
    rankings_per_step: int = option(
        4, "rankings of an optimizer step; published runs take 64 of 33,000", minimum=1
    )
    rankings_per_pass: int = option(
        1,
        "rankings computed at a time, by memory: the result is the same; must divide --rankings-per-step",
        minimum=1,
    )
    warmup_ratio: float = option(
        0.1, "part of the steps over which the learning rate rises", minimum=0, maximum=1
    )
    weight_decay: float = option(0.0, "of AdamW", minimum=0, maximum=100)
    max_gradient_norm: float = option(
        1.0, "gradients are scaled down to this norm; 0 for never", minimum=0, maximum=1e9
    )
    validation_fraction: float = option(
        0.15,
        "part of the distinct prompts, held out and measured before and after; 0 for none",
        minimum=0,
        maximum=0.9,
    )
    seed: int = option(
        0, "of the split, the head's first weights and the order", minimum=0, maximum=2**32 - 1
    )
    precision: Precision = option(
        Precision.AUTO, "of matrix products; auto is bf16 where the device is fast at it"
    )
    gradient_checkpointing: Checkpointing = option(
        Checkpointing.NONE,
        "what is computed again in the backward pass instead of being kept: nothing, what is cheap, or whole layers; "
        "less memory, more time",
    )
    max_tokens: int | None = option(
        None, "longest conversation in tokens; unset takes the model's limit", minimum=2
    )
    overlong: Overlong = option(
        Overlong.ERROR, "a ranking with a longer conversation is an error, or skipped whole"
    )
    save_every: int = option(
        100, "steps between checkpoints to resume from (3x the weights); 0 for none", minimum=0
    )
    eval_every: int = option(
        0,
        "steps between evaluations on the validation split, in the precision of training; 0 for none",
        minimum=0,
    )
    early_stopping_patience: int = option(
        0,
        "stop after so many evaluations in a row without a better validation loss, and keep the best weights; saves at each "
        "evaluation instead of --save-every; 0 for never",
        minimum=0,
    )
    report_to: str = option(
        "none",
        "experiment tracker: tensorboard, wandb, trackio, or whichever of Trainer's is installed",
    )
    log_every: int = option(2, "steps between lines of progress", minimum=1)
    resume: bool = option(
        False, "go on with the run in --output from its newest complete step checkpoint"
    )
    overwrite: bool = option(False, "replace what an earlier kwise train wrote to --output")

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("--model is required")
        if not self.output:
            raise ConfigError("--output is required")
        check_bounds(self)
        check_objective(self)
        check_adapter(self)
        if self.eval_every and not self.validation_fraction:
            raise ConfigError("--eval-every needs a validation split; --validation-fraction is 0")
        if self.load_in_4bit and self.text_regulariser:
            raise ConfigError(
                "--load-in-4bit and --text-regulariser exclude each other: its LM head reads unrounded states"
            )
        if self.early_stopping_patience and not self.eval_every:
            raise ConfigError("--early-stopping-patience counts evaluations: give --eval-every")
        if self.rankings_per_step % self.rankings_per_pass:
            raise ConfigError(
                f"--rankings-per-pass is {self.rankings_per_pass}; it must divide --rankings-per-step, {self.rankings_per_step}"
            )
        if self.resume and self.overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")

    def num_steps(self, num_rankings: int) -> int:
        """Optimizer steps of the whole run over `num_rankings`; the last step of an epoch may have
        fewer rankings.
        """
        return math.ceil(self.epochs * math.ceil(num_rankings / self.rankings_per_step))
