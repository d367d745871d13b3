"""The options of `kwise train`.

No torch is imported here, so that `--help` and a wrong option are answered at once.
"""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kwise.errors import ConfigError
from kwise.options import MAX_COUNT, check_bounds, check_date, option
from kwise.train.options.adapter_config import AdapterConfig, check_adapter
from kwise.train.options.heads import HeadsConfig, check_heads
from kwise.train.options.objectives import ObjectiveConfig, check_objective

_VALIDATION_FRACTION = 0.15


class Precision(Enum):
    """The precision of the backbone's matmuls.

    Weights, optimizer state, residual stream, head and loss are always float32.
    """

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Schedule(Enum):
    """The shape of the learning rate after the warm-up.

    It falls from its peak to `final_learning_rate_ratio` times the peak.
    """

    COSINE = "cosine"
    LINEAR = "linear"


class Pooling(Enum):
    """The tokens whose hidden states the head reads; see kwise/engine/model/pooling.py."""

    LAST = "last"
    MEAN = "mean"


class Checkpointing(Enum):
    """The part of each layer that is computed again; see model/memory/gradient_checkpointing.py."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class Overlong(Enum):
    """The treatment of rankings with a conversation over the token limit."""

    ERROR = "error"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(ObjectiveConfig, AdapterConfig, HeadsConfig):
    """The options of one training run.

    `recipe` is only a record here: the command line has read the options from it.

    Raises:
        ConfigError: an option is missing or out of range.
    """

    data: str = option(
        help="rankings in any format that kwise data convert reads; - reads standard input"
    )
    model: str = option(
        None,
        "required: model to start from: a Hugging Face directory, a hub name or a .gguf file",
    )
    output: Path = option(
        None,
        "required: directory that becomes the checkpoint; the run is in DIR.unfinished until then",
    )
    recipe: str = option(
        "",
        "take the options of a published run as defaults: a name (see kwise recipes) or a .yaml "
        "file",
    )
    chat_template: Path | None = option(
        None,
        "Jinja file that replaces the model's own chat template, or the name of one of the model's "
        "templates",
    )
    template_date: str = option(
        "",
        "date, as YYYY-MM-DD, that the saved chat template prints if the model's prints today's; "
        "by default today",
    )
    layers: int | None = option(
        None,
        "train only the first N layers of the model, for a smaller and faster reward model; by "
        "default all",
        minimum=1,
        maximum=MAX_COUNT,
    )
    pooling: Pooling | None = option(
        None,
        "tokens that the reward is read from. last: the last one, as transformers reads it; mean: "
        "the mean over the response's; default: as --model states, for a language model last",
    )
    epochs: float = option(
        1.0,
        "passes over the rankings; reward models soon overfit with more than one",
        exclusive_minimum=0,
        maximum=1e6,
    )
    learning_rate: float = option(
        3e-5,
        "peak of the learning rate; larger models need a lower one, LoRA a higher one",
        exclusive_minimum=0,
        maximum=1,
    )
    schedule: Schedule = option(Schedule.COSINE, "shape of the learning rate after the warm-up")
    final_learning_rate_ratio: float = option(
        0.0, "learning rate at the end, as a fraction of its peak", minimum=0, maximum=0.99
    )
    rankings_per_step: int = option(
        4,
        "rankings per optimizer step; published runs use 64, of 33,000",
        minimum=1,
        maximum=MAX_COUNT,
    )
    rankings_per_pass: int = option(
        1,
        "rankings computed at a time, limited by memory; the result is the same; must divide "
        "--rankings-per-step",
        minimum=1,
        maximum=MAX_COUNT,
    )
    warmup_ratio: float = option(
        0.1, "fraction of the steps in which the learning rate rises", minimum=0, maximum=1
    )
    weight_decay: float = option(0.0, "weight decay of AdamW", minimum=0, maximum=100)
    max_gradient_norm: float = option(
        1.0,
        "gradients with a larger norm are scaled down to it; 0 turns this off",
        minimum=0,
        maximum=1e9,
    )
    validation_fraction: float | None = option(
        None,
        "fraction of the distinct prompts that is held out and evaluated before and after "
        f"training; 0 for none; default: {_VALIDATION_FRACTION}, or none with --validation",
        minimum=0,
        maximum=0.9,
    )
    validation: str | None = option(
        None,
        "file of rankings, in any format that DATA may have, to evaluate on before and after "
        "training in place of a fraction of DATA; it must have no prompt of DATA",
    )
    seed: int = option(
        0,
        "seed of the split, of the heads' first weights, of the prompts that each head learns from "
        "and of the order of rankings",
        minimum=0,
        maximum=2**32 - 1,
    )
    precision: Precision = option(
        Precision.AUTO,
        "precision of the backbone's matmuls; auto: bf16 if the device is fast at it, else fp32",
    )
    gradient_checkpointing: Checkpointing = option(
        Checkpointing.NONE,
        "what the backward pass computes again to save memory. none: nothing; selective: what is "
        "cheap; full: whole layers",
    )
    max_tokens: int | None = option(
        None,
        "longest conversation in tokens; default: the model's limit",
        minimum=2,
        maximum=MAX_COUNT,
    )
    overlong: Overlong = option(
        Overlong.ERROR,
        "what to do with a ranking that has a longer conversation: stop, or skip the whole ranking",
    )
    export_check: bool = option(
        True, "refuse a model that kwise export would refuse; it exports a small copy, in seconds"
    )
    save_every: int = option(
        100,
        "steps between step checkpoints, from which --resume continues; each is 3 times as large "
        "as the weights; 0 for none",
        minimum=0,
        maximum=MAX_COUNT,
    )
    eval_every: int = option(
        0,
        "steps between evaluations on the validation split during training; 0 for none",
        minimum=0,
        maximum=MAX_COUNT,
    )
    early_stopping_patience: int = option(
        0,
        "stop after this many evaluations in a row without a lower validation loss, and keep the "
        "best weights; step checkpoints are then written at every evaluation; 0 for never",
        minimum=0,
        maximum=MAX_COUNT,
    )
    report_to: str = option(
        "none",
        "experiment tracker: tensorboard, wandb, trackio, or any other that Trainer supports",
    )
    log_every: int = option(2, "steps between lines of progress", minimum=1, maximum=MAX_COUNT)
    resume: bool = option(
        False, "continue the unfinished run of --output from its newest complete step checkpoint"
    )
    overwrite: bool = option(
        False,
        "replace a checkpoint and delete an unfinished run that kwise train wrote to --output",
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("--model is required")
        if not self.output:
            raise ConfigError("--output is required")
        check_bounds(self)
        check_date("--template-date", self.template_date)
        check_objective(self)
        check_adapter(self)
        check_heads(self)
        self._check_validation()
        if self.load_in_4bit and self.text_regulariser:
            raise ConfigError(
                "--load-in-4bit and --text-regulariser exclude each other: the LM head expects "
                "hidden states of unquantised weights"
            )
        if self.layers is not None and self.lora_rank:
            raise ConfigError(
                "--layers and --lora-rank exclude each other: an adapter of the first layers does "
                "not fit the whole model, which adapter_config.json names"
            )
        if self.layers is not None and self.text_regulariser:
            raise ConfigError(
                "--layers and --text-regulariser exclude each other: the LM head expects hidden "
                "states of the last layer"
            )
        if self.pooling is not None and self.lora_rank:
            raise ConfigError(
                "--pooling and --lora-rank exclude each other: adapter_config.json does not say "
                "how the reward is read"
            )
        if self.early_stopping_patience and not self.eval_every:
            raise ConfigError("--early-stopping-patience needs --eval-every")
        if self.rankings_per_step % self.rankings_per_pass:
            raise ConfigError(
                f"--rankings-per-pass is {self.rankings_per_pass}; it must divide "
                f"--rankings-per-step, {self.rankings_per_step}"
            )
        if self.resume and self.overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")

    @property
    def held_out_fraction(self) -> float:
        """The fraction of the distinct prompts of `data` that is held out; 0 for none."""
        if self.validation_fraction is None:
            return _VALIDATION_FRACTION if self.validation is None else 0.0
        return self.validation_fraction

    def _check_validation(self) -> None:
        if self.validation is not None:
            if self.validation_fraction is not None:
                raise ConfigError(
                    "--validation and --validation-fraction exclude each other: the model is "
                    "evaluated either on a file or on a fraction of DATA"
                )
            if Path(self.validation).resolve() == Path(self.data).resolve():
                same = "standard input" if self.data == "-" else f"the file {self.data}"
                raise ConfigError(f"DATA and --validation are both {same}")
        elif self.eval_every and not self.held_out_fraction:
            raise ConfigError("--eval-every needs a validation split; --validation-fraction is 0")

    def num_steps(self, num_rankings: int) -> int:
        """Return the number of optimizer steps of the run; the last of an epoch may be smaller."""
        return math.ceil(self.epochs * math.ceil(num_rankings / self.rankings_per_step))
