"""Compare rankings of K = 4 and K = 9: their worth per prompt, per pair and per second.

A ranking of four takes 30 seconds and has 6 pairs, one of nine takes 40 seconds and has 36 pairs;
these times are an assumption of the project, not a result. For K = 4, four of the nine responses
are drawn for each prompt. The impressions of annotators may have noise, and the comparison across
noises shows how much worse the hurried ranking of nine may be before it loses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kwise.benchmarks.experiments.annotators import Disagreement, label
from kwise.benchmarks.experiments.head import Labelled
from kwise.benchmarks.experiments.inputs import Inputs, learned, ranks_of
from kwise.train.options.objectives import ObjectiveConfig

SECONDS = {4: 30, 9: 40}
NUM_PROMPTS = {4: (40, 80, 160, 240, 320, 480), 9: (30, 40, 60, 80, 120, 160, 240, 320, 360, 480)}
NOISES = (0.0, 1.0, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training on `num_prompts` rankings of `K` responses."""

    model: str
    K: int
    num_prompts: int
    noise: float
    seed: int


def cells(inputs: Inputs, num_seeds: int) -> Sequence[Cell]:
    """Return all cells that the training part has enough prompts for."""
    return [
        Cell(model=inputs.main_model, K=K, num_prompts=num_prompts, noise=noise, seed=seed)
        for seed in range(num_seeds)
        for noise in NOISES
        for K, sizes in NUM_PROMPTS.items()
        for num_prompts in sizes
        if num_prompts <= inputs.num_training and inputs.responses.ranks.shape[1] >= K
    ]


def measure(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """Return the counts of one head."""
    prompts = inputs.split(cell.seed).training[: cell.num_prompts]
    quality = inputs.responses.quality[prompts]
    labels = label(quality, Disagreement(noise=cell.noise), 1, cell.seed).impressions
    random = np.random.default_rng([cell.seed, 3])
    shown = np.stack([random.permutation(quality.shape[1])[: cell.K] for _ in prompts])
    rows, columns = torch.arange(len(prompts))[:, None], torch.from_numpy(shown)
    group = Labelled(
        states=inputs.states(cell.model)[prompts][rows, columns],
        ranks=ranks_of(labels[rows, columns]),
        scores=labels[rows, columns],
    )
    return learned(inputs, cell.model, [group], ObjectiveConfig(), cell.seed)
