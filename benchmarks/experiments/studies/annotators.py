"""Compare rankings with scores as labels, under annotators who disagree.

Ten simulated annotators label 240 prompts. One head learns from the order of the responses, with
the loss of pairs; the others learn from the scores of the same impressions by least squares. All
are evaluated by the order of the noise-free scores of test prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from torch import Tensor

from kwise.benchmarks.experiments.annotators import Disagreement, Labels, label, standardised
from kwise.benchmarks.experiments.head import Labelled
from kwise.benchmarks.experiments.inputs import Inputs, learned, ranks_of
from kwise.train.options.objectives import ObjectiveConfig, ObjectiveName

NUM_PROMPTS = 240
NUM_ANNOTATORS = 10


class Method(Enum):
    """The labels that a head learns from, and how they are prepared."""

    RANKS = "ranks"  # the order of the impressions
    RANKS_OF_SCORES = "ranks of scores"  # the order of the seven-point scores, ties dropped
    SCORES = "scores"  # the seven-point scores as they are
    PER_ANNOTATOR = "scores per annotator"  # standardised with each annotator's mean and deviation
    PER_PROMPT = "scores per prompt"  # standardised within each prompt
    FINE_SCORES = "fine scores"  # impressions: a scale without steps or ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training.

    Attributes:
        quality: "standardised", alike in all prompts, or "logit", so that prompts differ too.
    """

    model: str
    method: str
    quality: str
    bias: float
    scale: float
    drift: float
    noise: float
    seed: int


_BASE = Disagreement(noise=0.5)
SWEEPS: dict[str, tuple[Disagreement, ...]] = {
    "bias": tuple(replace(_BASE, bias=bias) for bias in (0.0, 1.0, 2.0, 4.0)),
    "scale": tuple(replace(_BASE, scale=scale) for scale in (0.0, 0.5, 1.0)),
    "drift": tuple(replace(_BASE, drift=drift) for drift in (0.0, 1.0, 2.0)),
    "noise": tuple(
        Disagreement(bias=1.0, scale=0.5, drift=0.5, noise=noise) for noise in (0.0, 0.5, 1.0, 2.0)
    ),
}


def cells(inputs: Inputs, num_seeds: int) -> Sequence[Cell]:
    """Return all cells, each seed after the other, so that a run that is stopped is balanced."""
    scenarios = list(dict.fromkeys(one for sweep in SWEEPS.values() for one in sweep))
    return [
        Cell(
            model=inputs.main_model,
            method=method.value,
            quality=quality,
            bias=scenario.bias,
            scale=scenario.scale,
            drift=scenario.drift,
            noise=scenario.noise,
            seed=seed,
        )
        for seed in range(num_seeds)
        for quality in ("standardised", "logit")
        for scenario in (scenarios if quality == "standardised" else SWEEPS["bias"])
        for method in Method
    ]


def measure(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """Return the counts of one head."""
    prompts = inputs.split(cell.seed).training[:NUM_PROMPTS]
    responses = inputs.responses
    quality = responses.quality if cell.quality == "standardised" else responses.logit
    disagreement = Disagreement(
        bias=cell.bias, scale=cell.scale, drift=cell.drift, noise=cell.noise
    )
    labels = label(quality[prompts], disagreement, NUM_ANNOTATORS, cell.seed)
    ranks, scores, objective = labels_for(Method(cell.method), labels)
    group = Labelled(states=inputs.states(cell.model)[prompts], ranks=ranks, scores=scores)
    return learned(inputs, cell.model, [group], objective, cell.seed)


def labels_for(method: Method, labels: Labels) -> tuple[Tensor, Tensor, ObjectiveConfig]:
    """Return ranks, scores and objective. The ranks also choose λ, by the order of each method."""
    regression = ObjectiveConfig(objective=ObjectiveName.REGRESSION)
    coarse, fine, annotators = labels.seven_points(), labels.impressions, labels.annotators
    match method:
        case Method.RANKS:
            return ranks_of(fine), fine, ObjectiveConfig()
        case Method.RANKS_OF_SCORES:
            return ranks_of(coarse), coarse, ObjectiveConfig()
        case Method.SCORES:
            scores = coarse
        case Method.PER_ANNOTATOR:
            scores = standardised(coarse, annotators)
        case Method.PER_PROMPT:
            centred = coarse - coarse.mean(1, keepdim=True)
            scores = centred / centred.std(1, keepdim=True, correction=0).clamp(min=1e-6)
        case Method.FINE_SCORES:
            scores = fine
    whole = (scores - scores.mean()) / scores.std(correction=0).clamp(min=1e-6)
    return ranks_of(scores), whole, regression
