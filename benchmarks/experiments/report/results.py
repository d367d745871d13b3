"""The results of all experiments, read from their files, and estimates from them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kwise.benchmarks.experiments.cells import PROMPTS, read_cells
from kwise.benchmarks.experiments.report.intervals import Bootstrap, Estimate, by_seed, estimate
from kwise.errors import ConfigError

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The lines of each experiment, and the bootstrap of their prompts.

    Attributes:
        lines: by experiment; empty if it was not run.
        all_pairs, near_pairs: the draws, for all pairs and for pairs of nearly equal length.
        longer: the baseline "the longer response wins", for the same two.
        pairs_per_prompt: the mean; less than K (K − 1) / 2 where scores are tied.
        model: the model of the experiments that have one; "" for that of their first cell.
    """

    lines: Mapping[str, Sequence[Line]]
    model: str
    all_pairs: Bootstrap
    near_pairs: Bootstrap
    longer: tuple[Estimate, Estimate]
    pairs_per_prompt: float

    def has(self, study: str) -> bool:
        """Return whether there are cells of the model."""
        return any(self.model in ("", line["cell"]["model"]) for line in self.lines[study])

    def select(self, study: str, **fields: Any) -> list[Line]:
        """Return the lines of a study whose cells have these fields.

        Without `model` among them, the cells are of one model, see `model`.
        """
        fields = {"model": self.model or self.lines[study][0]["cell"]["model"], **fields}
        return [
            line
            for line in self.lines[study]
            if all(line["cell"][name] == value for name, value in fields.items())
        ]

    def draws(self, study: str, **fields: Any) -> np.ndarray:
        """Return the accuracy of each draw for the cells with these fields, one for each seed."""
        return self.all_pairs.accuracies(by_seed(self.select(study, **fields), "right"))

    def accuracy(self, study: str, **fields: Any) -> Estimate:
        """Return the accuracy of the cells with these fields."""
        return estimate(self.draws(study, **fields))

    def near(self, study: str, **fields: Any) -> Estimate:
        """Return the same on pairs of nearly equal length."""
        lines = self.select(study, **fields)
        return estimate(self.near_pairs.accuracies(by_seed(lines, "right_near")))

    def baseline(self) -> str:
        """Return a sentence on the baseline of length."""
        everything, near = (one.percent() for one in self.longer)
        return (
            f"The longer response wins in {everything} of all pairs, and in {near} of the pairs "
            "whose lengths differ by at most a quarter."
        )


def read_results(folder: Path, studies: Sequence[str], model: str, num_draws: int) -> Results:
    """Return the results in a folder.

    Raises:
        ConfigError: the folder has no results, or some are of other rankings.
    """
    path = folder / PROMPTS
    if not path.is_file():
        raise ConfigError(f"--results: {path} is missing; run kwise bench experiments first")
    prompts = json.loads(path.read_text(encoding="utf-8"))
    lines = {study: read_cells(folder / f"{study}.jsonl") for study in studies}
    for study, own in lines.items():
        if any(line["data"] != prompts["data"] for line in own):
            raise ConfigError(f"--results: {study}.jsonl has cells of other rankings; delete it")
    all_pairs, near_pairs = (
        Bootstrap(prompts["pairs"][field], num_draws) for field in ("right", "right_near")
    )
    return Results(
        lines=lines,
        model=model,
        pairs_per_prompt=float(np.mean(prompts["pairs"]["right"])),
        all_pairs=all_pairs,
        near_pairs=near_pairs,
        longer=(
            estimate(all_pairs.of_rule(prompts["longer"]["right"])),
            estimate(near_pairs.of_rule(prompts["longer"]["right_near"])),
        ),
    )
