"""`kwise bench experiments`: run the cells that the results do not have yet.

docs/evidence.md has each experiment's question, method and result. A backbone is frozen, so that
one pass over the responses serves hundreds of trainings. `fine-tuning` alone trains whole models.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kwise.benchmarks import machine
from kwise.benchmarks.experiments.cells import PROMPTS, run_cells
from kwise.benchmarks.experiments.features import features_of
from kwise.benchmarks.experiments.inputs import Inputs
from kwise.benchmarks.experiments.options import ExperimentsConfig
from kwise.benchmarks.experiments.responses import responses_of
from kwise.benchmarks.experiments.scoring import longer_wins, pairs_of
from kwise.benchmarks.experiments.studies import (
    annotators,
    data_size,
    fine_tuning,
    group_size,
    losses,
    models,
    systems,
)
from kwise.errors import ConfigError
from kwise.train.data.read import read_rankings


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """An experiment: its cells for a number of seeds, and how one is measured."""

    cells: Callable[[Inputs, int], Sequence[Any]]
    measure: Callable[[Inputs, Any], dict[str, Any]]


STUDIES: dict[str, Study] = {
    "annotators": Study(cells=annotators.cells, measure=annotators.measure),
    "group-size": Study(cells=group_size.cells, measure=group_size.measure),
    "data-size": Study(cells=data_size.cells, measure=data_size.measure),
    "losses": Study(cells=losses.cells, measure=losses.measure),
    "models": Study(cells=models.cells, measure=models.measure),
    "systems": Study(cells=systems.cells, measure=systems.measure),
    "fine-tuning": Study(cells=fine_tuning.cells, measure=fine_tuning.measure),
}


def run(config: ExperimentsConfig) -> None:
    """Run all cells of the chosen experiments.

    Raises:
        ConfigError: the rankings cannot be used, or the results are of other rankings.
    """
    torch.set_num_threads(config.threads)
    rankings = read_rankings(config.rankings, progress=print)
    responses = responses_of(config.rankings, rankings)
    chosen = config.named_models()
    needs_states = set(config.studies) != {"fine-tuning"}
    inputs = Inputs(
        rankings=rankings,
        responses=responses,
        models=chosen,
        features={
            name: features_of(
                rankings,
                model,
                config.states / f"{name}.npz",
                responses.fingerprint,
                bf16=config.bf16,
            )
            for name, model in chosen.items()
            if needs_states
        },
        bf16=config.bf16,
    )
    _write_prompts(config.results / PROMPTS, inputs)
    for name in config.studies:
        study = STUDIES[name]
        run_cells(
            config.results / f"{name}.jsonl",
            study.cells(inputs, config.seeds),
            lambda cell, study=study: study.measure(inputs, cell),  # type: ignore[misc]
            fingerprint=responses.fingerprint,
            max_cells=config.max_cells or None,
        )


def _write_prompts(path: Path, inputs: Inputs) -> None:
    """Write the number of pairs of each prompt, the baseline of length, and the machine."""
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))["data"]
        if known != inputs.responses.fingerprint:
            raise ConfigError(f"--results: {path} is of other rankings; name another folder")
    content = {
        "data": inputs.responses.fingerprint,
        "pairs": asdict(pairs_of(inputs.responses)),
        "longer": asdict(longer_wins(inputs.responses)),
        "machine": machine.describe(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
