"""Measure the accuracy by the number of prompts, with all weights trained by `kwise train`.

Each cell is a run of the command itself, with its defaults but for precision, epochs and the peak
of the learning rate, and takes minutes to an hour on two cores. The checkpoint is deleted when its
rewards of the test prompts are known.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kwise.benchmarks.experiments.inputs import Inputs
from kwise.benchmarks.experiments.scoring import counts_of
from kwise.benchmarks.experiments.studies.data_size import SIZES
from kwise.errors import LibraryFailed
from kwise.train.model.precision import bf16_backbone
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import Precision, TrainConfig
from kwise.train.rankings.schema import Ranking
from kwise.train.run.training import train

_EPOCHS = 1.0
_LEARNING_RATE = 3e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of `kwise train` on the rankings of `num_prompts` prompts."""

    model: str
    num_prompts: int
    epochs: float
    learning_rate: float
    seed: int


def cells(inputs: Inputs, num_seeds: int) -> Sequence[Cell]:
    """Return all cells of the first model, small ones first within a seed."""
    return [
        Cell(
            model=inputs.main_model,
            num_prompts=size,
            epochs=_EPOCHS,
            learning_rate=_LEARNING_RATE,
            seed=seed,
        )
        for seed in range(num_seeds)
        for size in SIZES
        if size <= inputs.num_training
    ]


def measure(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """Train, and return the counts of the checkpoint's rewards."""
    where = inputs.split(cell.seed)
    with TemporaryDirectory() as folder:
        data, output = Path(folder, "rankings.jsonl"), Path(folder, "checkpoint")
        chosen = [inputs.rankings[index] for index in where.training[: cell.num_prompts].tolist()]
        data.write_text("".join(map(_line, chosen)), encoding="utf-8")
        report = train(
            TrainConfig(
                data=str(data),
                model=inputs.models[cell.model],
                output=output,
                epochs=cell.epochs,
                learning_rate=cell.learning_rate,
                seed=cell.seed,
                precision=Precision.BF16 if inputs.bf16 else Precision.FP32,
                validation_fraction=0.0,
                save_every=0,
                export_check=False,
            )
        )
        if not output.is_dir():
            raise LibraryFailed(f"kwise train has written no checkpoint to {output}")
        held_out = [inputs.rankings[index] for index in where.test.tolist()]
        rewards = _rewards(str(output), held_out, bf16=inputs.bf16)
    counts = counts_of(rewards, inputs.responses, where.test)
    losses = [logged.loss for logged in report.losses]
    return {"right": counts.right, "right_near": counts.right_near, "losses": losses}


def _rewards(checkpoint: str, rankings: Sequence[Ranking], *, bf16: bool) -> torch.Tensor:
    reward_model = load_reward_model(checkpoint)
    model = reward_model.model
    with bf16_backbone(model, model.device) if bf16 else contextlib.nullcontext():
        return torch.tensor([reward_model.rewards(one.conversations()) for one in rankings])


def _line(ranking: Ranking) -> str:
    labels = zip(ranking.responses, ranking.ranks, strict=True)
    row = {
        "prompt": [
            {"role": message.role, "content": message.content} for message in ranking.prompt
        ],
        "responses": [{"text": text, "rank": rank} for text, rank in labels],
    }
    return json.dumps(row) + "\n"
