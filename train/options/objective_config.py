"""The options of `kwise train` that say what a ranking's loss is. Imports no torch: `--help` is answered at once."""

from dataclasses import dataclass
from enum import Enum

from kwise.errors import ConfigError
from kwise.options import option


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
    pair_weighting: PairWeighting = option(
        PairWeighting.MEAN, "mean: every prompt counts the same; sum: every pair does"
    )
    ties: Ties = option(Ties.IGNORE, "what a tie tells: nothing, or that rewards are alike")
    tie_strength: float = option(
        1.0,
        "how common ties are: ν of Davidson; Rao and Kupper's θ − 1",
        exclusive_minimum=0,
        maximum=1e6,
    )
    margin: Margin = option(
        Margin.NONE, "by how much the better reward is to be higher: by ranks or scores apart"
    )
    margin_scale: float = option(1.0, "times the margin", exclusive_minimum=0, maximum=1e6)
    label_smoothing: float = option(
        0.0, "part of the pairs thought to be the wrong way round", minimum=0, maximum=0.49
    )
    centring: float = option(
        0.0,
        "weight of the mean squared reward, which keeps rewards around 0",
        minimum=0,
        maximum=1e6,
    )
    text_regulariser: float = option(
        0.0,
        "weight of a language model's loss on the best response, which keeps the hidden states general; 0.01 in GRM",
        minimum=0,
        maximum=0.99,
    )


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
    if config.margin is Margin.NONE and config.margin_scale != 1:
        raise ConfigError(
            "--margin-scale is of --margin ranks and --margin scores; --margin is none"
        )
    if config.ties is Ties.IGNORE and config.tie_strength != 1:
        raise ConfigError(
            "--tie-strength is of --ties rao-kupper and --ties davidson; --ties is ignore"
        )
    if config.pair_weighting is PairWeighting.SUM and config.objective in (
        ObjectiveName.PLACKETT_LUCE,
        ObjectiveName.REGRESSION,
    ):
        raise ConfigError(f"--pair-weighting sum: --objective {name} has no pairs")


def needs_scores(config: ObjectiveConfig) -> bool:
    """Whether rankings must have been given by scores."""
    return config.objective is ObjectiveName.REGRESSION or config.margin is Margin.SCORES


def learns_from_ties(config: ObjectiveConfig) -> bool:
    """Whether a ranking that is one tie throughout says anything: that its rewards are alike, or what they are."""
    return config.ties is not Ties.IGNORE or config.objective is ObjectiveName.REGRESSION
