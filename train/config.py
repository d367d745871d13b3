"""The options of `kwise train`. Imports no torch: `--help` and a wrong option are answered at once."""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kwise.engine.errors import ConfigError
from kwise.engine.options import check_bounds, option


class Precision(Enum):
    """Of the backbone's matrix products; weights, optimizer state, residual stream, head and loss are float32 always."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Overlong(Enum):
    """What to do with a ranking that has a conversation over the limit."""

    ERROR = "error"
    SKIP = "skip"


class ObjectiveName(Enum):
    """What a ranking's loss is made of."""

    PAIRS = "pairs"  # −log σ(Δ): Bradley and Terry 1952; Ouyang et al. 2022, eq. 1
    SIGMOID = "sigmoid"  # −σ(Δ), as some texts print the above: bounded, so that a pair far on the wrong side pulls little
    PLACKETT_LUCE = "plackett-luce"  # the order as a whole: Plackett 1975; ListMLE, Xia et al. 2008
    REGRESSION = "regression"  # (r − score)², the baseline that rankings are meant to beat


class Ties(Enum):
    """What a tie tells."""

    IGNORE = "ignore"  # nothing
    RAO_KUPPER = "rao-kupper"  # Rao and Kupper 1967: P(i > j) = π_i / (π_i + θ π_j), θ ≥ 1
    DAVIDSON = "davidson"  # Davidson 1970: P(i > j) = π_i / (π_i + π_j + ν √(π_i π_j)), ν ≥ 0


class Margin(Enum):
    """By how much the better reward is to exceed the other: −log σ(Δ − m), Touvron et al. 2023 (Llama 2), eq. 2."""

    NONE = "none"
    RANKS = "ranks"  # m = scale · (difference of ranks) / (number of ranks − 1)
    SCORES = "scores"  # m = scale · (difference of scores)


class PairWeighting(Enum):
    """Of a ranking's pairs in its loss."""

    MEAN = "mean"  # a prompt with K = 9 counts as one with K = 4
    SUM = "sum"  # every pair counts the same: K = 9 outvotes K = 4 by 36 to 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """Which objective. `check_objective` says which options go together."""

    objective: ObjectiveName = option(
        ObjectiveName.PAIRS,
        "−log σ of every pair's difference; −σ of it; the order as a whole; the squared error of scores. --ties, --margin and "
        "--label-smoothing are of pairs",
    )
    pair_weighting: PairWeighting = option(PairWeighting.MEAN, "mean: every prompt counts the same; sum: every pair does")
    ties: Ties = option(Ties.IGNORE, "what a tie tells: nothing, or that rewards are alike")
    tie_strength: float = option(1.0, "how common ties are: ν of Davidson; Rao and Kupper's θ − 1", exclusive_minimum=0)
    margin: Margin = option(Margin.NONE, "by how much the better reward is to be higher: by ranks or scores apart")
    margin_scale: float = option(1.0, "times the margin", exclusive_minimum=0)
    label_smoothing: float = option(0.0, "part of the pairs thought to be the wrong way round", minimum=0, maximum=0.49)
    centring: float = option(0.0, "weight of the mean squared reward, which keeps rewards around 0", minimum=0)


def check_objective(config: ObjectiveConfig) -> None:
    """Raises ConfigError where an option has no meaning beside another: it must not be ignored silently."""
    name = config.objective.value
    if config.objective is not ObjectiveName.PAIRS:
        for flag, is_set in (
            ("--ties", config.ties is not Ties.IGNORE),
            ("--margin", config.margin is not Margin.NONE),
            ("--label-smoothing", config.label_smoothing > 0),
        ):
            if is_set:
                raise ConfigError(f"{flag} is of --objective pairs; --objective is {name}")
    if config.ties is not Ties.IGNORE and config.label_smoothing:
        raise ConfigError("--label-smoothing and --ties exclude each other")
    if config.pair_weighting is PairWeighting.SUM and config.objective in (
        ObjectiveName.PLACKETT_LUCE,
        ObjectiveName.REGRESSION,
    ):
        raise ConfigError(f"--pair-weighting sum: --objective {name} has no pairs")


def needs_scores(config: ObjectiveConfig) -> bool:
    """Whether rankings must have been given by scores."""
    return config.objective is ObjectiveName.REGRESSION or config.margin is Margin.SCORES


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(ObjectiveConfig):
    """One training run.

    Raises:
        ConfigError: an option is missing or out of range.
    """

    data: str = option(help="rankings as JSON Lines, .gz or not; - reads standard input")
    model: str = option(None, "required: the model to start from, a Hugging Face directory, a hub name or a .gguf file")
    output: Path = option(None, "required: directory for the checkpoint, training_report.json and, meanwhile, steps/")
    chat_template: Path | None = option(None, "Jinja file to use in place of the model's own chat template")
    epochs: float = option(1.0, "passes over the rankings; more overfit soon", exclusive_minimum=0)
    learning_rate: float = option(3e-5, "peak of the cosine schedule; larger models take less", exclusive_minimum=0)
    rankings_per_step: int = option(4, "rankings of an optimizer step; published runs take 64 of 33,000", minimum=1)
    rankings_per_pass: int = option(
        1, "rankings computed at a time, by memory: the result is the same; must divide --rankings-per-step", minimum=1
    )
    warmup_ratio: float = option(0.1, "part of the steps over which the learning rate rises", minimum=0, maximum=1)
    weight_decay: float = option(0.0, "of AdamW", minimum=0)
    max_gradient_norm: float = option(1.0, "gradients are scaled down to this norm; 0 for never", minimum=0)
    validation_fraction: float = option(
        0.15, "part of the distinct prompts, held out and measured before and after; 0 for none", minimum=0, maximum=0.9
    )
    seed: int = option(0, "of the split, the head's first weights and the order", minimum=0, maximum=2**32 - 1)
    precision: Precision = option(Precision.AUTO, "of matrix products; auto is bf16 where the device is fast at it")
    max_tokens: int | None = option(None, "longest conversation in tokens; unset takes the model's limit", minimum=2)
    overlong: Overlong = option(Overlong.ERROR, "a ranking with a longer conversation is an error, or skipped whole")
    save_every: int = option(100, "steps between checkpoints to resume from (3x the weights); 0 for none", minimum=0)
    log_every: int = option(2, "steps between lines of progress", minimum=1)
    resume: bool = option(False, "go on with the run in --output from its newest complete step checkpoint")
    overwrite: bool = option(False, "replace what an earlier kwise train wrote to --output")

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("--model is required")
        if not self.output:
            raise ConfigError("--output is required")
        check_bounds(self)
        check_objective(self)
        if self.rankings_per_step % self.rankings_per_pass:
            raise ConfigError(
                f"--rankings-per-pass is {self.rankings_per_pass}; it must divide --rankings-per-step, {self.rankings_per_step}"
            )
        if self.resume and self.overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")

    @property
    def passes_per_step(self) -> int:
        """How many passes' gradients make one optimizer step."""
        return self.rankings_per_step // self.rankings_per_pass

    def num_steps(self, num_rankings: int) -> int:
        """Optimizer steps of the whole run over `num_rankings`; the last step of an epoch may have fewer rankings."""
        return math.ceil(self.epochs * math.ceil(num_rankings / self.rankings_per_step))
