"""Measure the accuracy by the number of prompts, on the frozen backbone of each model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kwise.benchmarks.experiments.inputs import Inputs, measured
from kwise.train.options.objectives import ObjectiveConfig

SIZES = (15, 30, 60, 120, 240, 480)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training on the true order of all responses to `num_prompts` prompts."""

    model: str
    num_prompts: int
    seed: int


def cells(inputs: Inputs, num_seeds: int) -> Sequence[Cell]:
    """Return all cells that the training part has enough prompts for."""
    return [
        Cell(model=model, num_prompts=size, seed=seed)
        for seed in range(num_seeds)
        for model in inputs.features
        for size in SIZES
        if size <= inputs.num_training
    ]


def measure(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """Return the counts of one head."""
    where, states = inputs.split(cell.seed), inputs.states(cell.model)
    prompts = where.training[: cell.num_prompts]
    group = inputs.true_labels(states, prompts)
    return measured(inputs, inputs.head([group], ObjectiveConfig()), states, where.test)
