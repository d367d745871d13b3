"""The objectives of `kwise train`: a table with one entry each, and the options that choose.

An entry holds everything that is known about an objective except its formula: the function that
computes it, the data and options that it uses, what it learns from ties, what its rewards mean and
who published it. The function is named, not imported, because `--help` must not load torch; a test
resolves every name. To add an objective, add a name, an entry and a function.

The formulas write Δ = r_i − r_j for two responses of which i is ranked better.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, get_type_hints

from kwise.errors import ConfigError
from kwise.options import option


class ObjectiveName(Enum):
    """The value of --objective."""

    PAIRS = "pairs"
    SIGMOID = "sigmoid"
    PLACKETT_LUCE = "plackett-luce"
    REGRESSION = "regression"


class Ties(Enum):
    """The value of --ties: what `pairs` learns from two responses of equal rank."""

    IGNORE = "ignore"
    RAO_KUPPER = "rao-kupper"
    DAVIDSON = "davidson"


class Margin(Enum):
    """The value of --margin: the difference m that is subtracted from Δ.

    Touvron et al. 2023 (Llama 2), eq. 2: −log σ(Δ − m).
    """

    NONE = "none"
    RANKS = "ranks"  # m = scale · (difference of ranks) / (number of ranks − 1)
    SCORES = "scores"  # m = scale · (difference of scores)


class PairWeighting(Enum):
    """The value of --pair-weighting: how the terms of a ranking's pairs are reduced."""

    MEAN = "mean"  # a prompt with K = 9 counts as much as one with K = 4
    SUM = "sum"  # every pair counts the same: K = 9 outvotes K = 4 by 36 to 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One way to compute a ranking's loss.

    Attributes:
        loss: "MODULE:FUNCTION", a `losses.Loss`.
        summary: the formula, or a few words, for `--help`.
        source: the publication, for the model card.
        meaning: a sentence for the model card that says what the rewards mean.
        needs_scores: whether the responses must have scores; ranks are not enough.
        learns_from_ties: whether a ranking whose responses are all tied has a loss. Otherwise such
            rankings are refused.
        fixes_zero: whether the loss depends on the rewards themselves, not on differences alone.
        options: fields of `ObjectiveConfig` that only some objectives use, and this one does.
    """

    loss: str
    summary: str
    source: str
    meaning: str
    needs_scores: bool = False
    learns_from_ties: bool = False
    fixes_zero: bool = False
    options: tuple[str, ...] = ()


_ORDER_ONLY = (
    "Of two responses to a prompt, people prefer the one with the higher reward; the size of the "
    "difference is not a probability. Rewards of different prompts are not comparable."
)
_PAIR_OPTIONS = ("pair_weighting", "ties", "tie_strength", "margin", "margin_scale")

OBJECTIVES: dict[ObjectiveName, Objective] = {
    ObjectiveName.PAIRS: Objective(
        loss="kwise.train.step.losses:pairs_loss",
        summary="−log σ(Δ) of every pair",
        source="Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT), eq. 1",
        meaning="Of two responses to a prompt, people prefer the one with the higher reward, with "
        "probability σ of the difference. Rewards of different prompts are not comparable.",
        options=(*_PAIR_OPTIONS, "label_smoothing"),
    ),
    ObjectiveName.SIGMOID: Objective(
        loss="kwise.train.step.losses:sigmoid_loss",
        summary="−σ(Δ) of every pair; bounded, so pairs in the wrong order pull little",
        source="the loss of InstructGPT as some texts print it, without the logarithm",
        meaning=_ORDER_ONLY,
        options=("pair_weighting",),
    ),
    ObjectiveName.PLACKETT_LUCE: Objective(
        loss="kwise.train.step.losses:plackett_luce_loss",
        summary="likelihood of the whole order",
        source="Plackett 1975; ListMLE, Xia et al. 2008",
        meaning="People rank the responses to a prompt by choosing the best of those that are "
        "left, again and again, each with a probability proportional to exp(reward). Rewards of "
        "different prompts are not comparable.",
    ),
    ObjectiveName.REGRESSION: Objective(
        loss="kwise.train.step.losses:regression_loss",
        summary="(reward − score)² of every response, the baseline",
        source="least squares",
        meaning="The reward estimates the score that people would give.",
        needs_scores=True,
        learns_from_ties=True,
        fixes_zero=True,
    ),
}

TIE_MODELS: dict[Ties, Objective] = {
    Ties.RAO_KUPPER: Objective(
        loss="kwise.train.step.losses:rao_kupper_loss",
        summary="P(i > j) = π_i / (π_i + θ π_j)",
        source="Rao and Kupper 1967",
        meaning="Of two responses to a prompt, people prefer the one with the higher reward, or "
        "neither, with the probabilities of Rao and Kupper's model. Rewards of different prompts "
        "are not comparable.",
        learns_from_ties=True,
        options=_PAIR_OPTIONS,
    ),
    Ties.DAVIDSON: Objective(
        loss="kwise.train.step.losses:davidson_loss",
        summary="P(i > j) = π_i / (π_i + π_j + ν √(π_i π_j))",
        source="Davidson 1970",
        meaning="Of two responses to a prompt, people prefer the one with the higher reward, or "
        "neither, with the probabilities of Davidson's model. Rewards of different prompts are "
        "not comparable.",
        learns_from_ties=True,
        options=_PAIR_OPTIONS,
    ),
}
"""`ObjectiveName.PAIRS` with --ties; π = exp(reward). `Ties.IGNORE` is the entry of `OBJECTIVES`.
"""


def _list_summaries(entries: Mapping[Any, Objective]) -> str:
    return "; ".join(f"{name.value}: {entry.summary}" for name, entry in entries.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """The options that choose the objective. `check_objective` says which ones go together."""

    objective: ObjectiveName = option(
        ObjectiveName.PAIRS,
        "the loss of a ranking, from the difference Δ of two rewards, or from the rewards. "
        + _list_summaries(OBJECTIVES),
    )
    pair_weighting: PairWeighting = option(
        PairWeighting.MEAN,
        "mean: every prompt counts the same; sum: every pair counts the same",
    )
    ties: Ties = option(
        Ties.IGNORE,
        "how --objective pairs treats equal ranks. ignore: they add nothing to the loss; "
        + _list_summaries(TIE_MODELS),
    )
    tie_strength: float = option(
        1.0,
        "how common ties are: ν for davidson, θ − 1 for rao-kupper",
        exclusive_minimum=0,
        maximum=1e6,
    )
    margin: Margin = option(
        Margin.NONE,
        "how far --objective pairs pushes two rewards apart: in proportion to the difference of "
        "their ranks or of their scores",
    )
    margin_scale: float = option(
        1.0, "factor by which the margin is multiplied", exclusive_minimum=0, maximum=1e6
    )
    label_smoothing: float = option(
        0.0,
        "assumed fraction of pairs that are labelled the wrong way round",
        minimum=0,
        maximum=0.49,
    )
    centring: float = option(
        0.0,
        "weight of the mean squared reward, which keeps rewards around 0",
        minimum=0,
        maximum=1e6,
    )
    text_regulariser: float = option(
        0.0,
        "weight of a language-model loss on the best response, which keeps the hidden states "
        "general; 0.01 in GRM",
        minimum=0,
        maximum=0.99,
    )


def objective_of(config: ObjectiveConfig) -> Objective:
    """Return the entry that `config` chooses."""
    return TIE_MODELS.get(config.ties) or OBJECTIVES[config.objective]


def check_objective(config: ObjectiveConfig) -> None:
    """Raise ConfigError if an option would have no effect in combination with another one."""
    entry = OBJECTIVES[config.objective]
    for field in fields(ObjectiveConfig):
        users = [name.value for name, other in OBJECTIVES.items() if field.name in other.options]
        is_set = getattr(config, field.name) != field.default
        if users and is_set and field.name not in entry.options:
            flag = "--" + field.name.replace("_", "-")
            raise ConfigError(
                f"{flag} has no effect with --objective {config.objective.value}; "
                f"it is an option of --objective {' and '.join(users)}"
            )
    if config.ties is not Ties.IGNORE and config.label_smoothing:
        raise ConfigError("--label-smoothing and --ties exclude each other")
    if config.margin is Margin.NONE and config.margin_scale != 1:
        raise ConfigError(
            "--margin-scale has no effect with --margin none; give --margin ranks or --margin "
            "scores"
        )
    if config.ties is Ties.IGNORE and config.tie_strength != 1:
        raise ConfigError(
            "--tie-strength has no effect with --ties ignore; give --ties rao-kupper or --ties "
            "davidson"
        )


def option_that_needs_scores(config: ObjectiveConfig) -> str | None:
    """Return the option that needs scores; None if ranks are enough."""
    if objective_of(config).needs_scores:
        return f"--objective {config.objective.value}"
    return "--margin scores" if config.margin is Margin.SCORES else None


def learns_from_ties(config: ObjectiveConfig) -> bool:
    """Return whether a ranking whose responses are all tied has a loss."""
    return objective_of(config).learns_from_ties


def reward_meaning(config: ObjectiveConfig) -> str:
    """Return a sentence or two that say what the rewards mean."""
    if config.margin is not Margin.NONE or config.label_smoothing:
        return _ORDER_ONLY  # the likelihood is no longer that of the entry's model
    return objective_of(config).meaning


def objective_from_plain(plain: Mapping[str, Any]) -> ObjectiveConfig:
    """Return the config whose fields, enums by value, are among those of `plain`."""
    kinds = get_type_hints(ObjectiveConfig)
    return ObjectiveConfig(**{name: kind(plain[name]) for name, kind in kinds.items()})
