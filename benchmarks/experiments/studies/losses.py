"""Compare the losses by the held-out pairs that they order rightly, on equal labels.

Four kinds of labels: the true order; noisy impressions; seven-point scores, whose ties say that two
responses are alike; and rankings of four to nine responses, the only ones for which the weight of a
pair matters. Regression and score margins get the quality that the ranks were made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kwise.benchmarks.experiments.annotators import Disagreement, label
from kwise.benchmarks.experiments.head import Labelled
from kwise.benchmarks.experiments.inputs import Inputs, learned, ranks_of
from kwise.train.options.objectives import (
    Margin,
    ObjectiveConfig,
    ObjectiveName,
    PairWeighting,
    Ties,
)

NUM_PROMPTS = 240
_MIXED_SIZES = range(4, 10)


class Given(Enum):
    """The labels of the training prompts."""

    TRUE = "true order"
    NOISY = "noisy order"  # noise as large as the spread of qualities
    TIED = "seven-point scores"
    MIXED = "K = 4 to 9"  # with half that noise


VARIANTS: dict[str, ObjectiveConfig] = {
    "pairs": ObjectiveConfig(),
    "plackett-luce": ObjectiveConfig(objective=ObjectiveName.PLACKETT_LUCE),
    "sigmoid": ObjectiveConfig(objective=ObjectiveName.SIGMOID),
    "regression": ObjectiveConfig(objective=ObjectiveName.REGRESSION),
    "margin ranks 1": ObjectiveConfig(margin=Margin.RANKS),
    "margin ranks 3": ObjectiveConfig(margin=Margin.RANKS, margin_scale=3),
    "margin scores 0.5": ObjectiveConfig(margin=Margin.SCORES, margin_scale=0.5),
    "margin scores 1": ObjectiveConfig(margin=Margin.SCORES),
    "smoothing 0.05": ObjectiveConfig(label_smoothing=0.05),
    "smoothing 0.2": ObjectiveConfig(label_smoothing=0.2),
    "centring 0.01": ObjectiveConfig(centring=0.01),
    "centring 0.1": ObjectiveConfig(centring=0.1),
}
_BASIC = ("pairs", "plackett-luce", "sigmoid", "regression")
TIE_VARIANTS: dict[str, ObjectiveConfig] = {
    **{name: VARIANTS[name] for name in _BASIC},
    "rao-kupper 0.5": ObjectiveConfig(ties=Ties.RAO_KUPPER, tie_strength=0.5),
    "rao-kupper 1": ObjectiveConfig(ties=Ties.RAO_KUPPER),
    "davidson 0.5": ObjectiveConfig(ties=Ties.DAVIDSON, tie_strength=0.5),
    "davidson 1": ObjectiveConfig(ties=Ties.DAVIDSON),
}
MIXED_VARIANTS: dict[str, ObjectiveConfig] = {
    **{name: VARIANTS[name] for name in _BASIC},
    "pairs, sum": ObjectiveConfig(pair_weighting=PairWeighting.SUM),
    "sigmoid, sum": ObjectiveConfig(
        objective=ObjectiveName.SIGMOID, pair_weighting=PairWeighting.SUM
    ),
}
VARIANTS_OF: dict[Given, dict[str, ObjectiveConfig]] = {
    Given.TRUE: VARIANTS,
    Given.NOISY: VARIANTS,
    Given.TIED: TIE_VARIANTS,
    Given.MIXED: MIXED_VARIANTS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training with the loss `variant` on the labels `given`."""

    model: str
    given: str
    variant: str
    seed: int


def cells(inputs: Inputs, num_seeds: int) -> Sequence[Cell]:
    """Return all cells."""
    return [
        Cell(model=inputs.main_model, given=given.value, variant=variant, seed=seed)
        for seed in range(num_seeds)
        for given, variants in VARIANTS_OF.items()
        for variant in variants
    ]


def measure(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """Return the counts of one head."""
    given = Given(cell.given)
    prompts = inputs.split(cell.seed).training[:NUM_PROMPTS]
    states, quality = inputs.states(cell.model)[prompts], inputs.responses.quality[prompts]
    noise = {Given.TRUE: 0.0, Given.NOISY: 1.0, Given.TIED: 0.5, Given.MIXED: 0.5}[given]
    labels = label(quality, Disagreement(noise=noise), 1, cell.seed)
    scores = labels.seven_points() if given is Given.TIED else labels.impressions
    groups = _mixed(states, scores, cell.seed) if given is Given.MIXED else [_all(states, scores)]
    return learned(inputs, cell.model, groups, VARIANTS_OF[given][cell.variant], cell.seed)


def _all(states: Tensor, scores: Tensor) -> Labelled:
    whole = (scores - scores.mean()) / scores.std(correction=0)
    return Labelled(states=states, ranks=ranks_of(scores), scores=whole)


def _mixed(states: Tensor, scores: Tensor, seed: int) -> list[Labelled]:
    """Return rankings of some of the responses, as many for each K of `_MIXED_SIZES`."""
    random = np.random.default_rng([seed, 4])
    num_prompts, num_responses = scores.shape
    sizes = [size for size in _MIXED_SIZES if size <= num_responses]
    groups = []
    for index, size in enumerate(sizes):
        rows = torch.arange(index, num_prompts, len(sizes))
        shown = np.stack([random.permutation(num_responses)[:size] for _ in rows])
        columns = torch.from_numpy(shown)
        groups.append(_all(states[rows[:, None], columns], scores[rows[:, None], columns]))
    return groups
