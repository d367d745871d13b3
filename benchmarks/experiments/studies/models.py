"""Larger and smaller backbones at equal data, with heads on their frozen states.

The states after layer 12 are what the first twelve layers compute, so the depths of one model stand
for smaller models. They were not trained to end there, so a real small model may do better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kwise.benchmarks.experiments.features import HEAD, MEAN
from kwise.benchmarks.experiments.inputs import Inputs, measured
from kwise.train.options.objectives import ObjectiveConfig

SIZES = (30, 120, 480)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training on the states of `layer` of `model`, pooled in one of the two ways."""

    model: str
    layer: int
    pooling: str
    num_prompts: int
    seed: int


def cells(inputs: Inputs, num_seeds: int) -> Sequence[Cell]:
    """Return all cells that the training part has enough prompts for."""
    return [
        Cell(model=model, layer=layer, pooling=pooling, num_prompts=size, seed=seed)
        for seed in range(num_seeds)
        for model, features in inputs.features.items()
        for layer in features.layers
        for pooling in (MEAN, HEAD)
        for size in SIZES
        if size <= inputs.num_training
    ]


def measure(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """Return the counts of one head."""
    features, where = inputs.features[cell.model], inputs.split(cell.seed)
    states = inputs.states(cell.model, cell.layer, cell.pooling)
    prompts = where.training[: cell.num_prompts]
    group = inputs.true_labels(states, prompts)
    result = measured(
        inputs, inputs.head([group], ObjectiveConfig(), cell.pooling), states, where.test
    )
    about = {"num_layers": features.num_layers, "num_parameters": features.num_parameters}
    return {**result, **about, "num_cut": features.num_cut}
