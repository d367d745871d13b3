"""Splits, counts, cells and intervals of the experiments."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kwise.benchmarks.experiments.cells import read_cells, run_cells
from kwise.benchmarks.experiments.report.intervals import Bootstrap, estimate
from kwise.benchmarks.experiments.report.power_law import fit
from kwise.benchmarks.experiments.responses import NUM_FOLDS, Responses, split
from kwise.benchmarks.experiments.scoring import counts_of, longer_wins, pairs_of


@given(num_prompts=st.integers(20, 200), repeat=st.integers(0, 20))
def test_five_seeds_test_every_prompt_once_and_train_on_the_others(
    num_prompts: int, repeat: int
) -> None:
    splits = [split(num_prompts, NUM_FOLDS * repeat + fold) for fold in range(NUM_FOLDS)]
    tested = torch.cat([one.test for one in splits]).tolist()
    assert sorted(tested) == list(range(num_prompts))
    for one in splits:
        assert sorted([*one.training.tolist(), *one.test.tolist()]) == list(range(num_prompts))


def responses() -> Responses:
    return Responses(
        ranks=torch.tensor([[1, 2, 3], [1, 1, 2]]),
        quality=torch.zeros(2, 3),
        logit=torch.zeros(2, 3),
        lengths=torch.tensor([[100.0, 80.0, 10.0], [5.0, 50.0, 50.0]]),
        systems=None,
        fingerprint="made up",
    )


def test_counts_of_pairs_by_prompt() -> None:
    assert pairs_of(responses()).right == (3.0, 2.0)
    assert pairs_of(responses()).right_near == (1.0, 1.0)  # 100 and 80; 50 and 50
    assert longer_wins(responses()).right == (3.0, 0.5)  # an equal length is half a pair
    rewards = torch.tensor([[1.0, 2.0, 0.0]])
    assert counts_of(rewards, responses(), torch.tensor([0])).right == (2.0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    name: str
    seed: int


def test_a_stopped_run_continues_and_measures_no_cell_twice(tmp_path: Path) -> None:
    path, measured = tmp_path / "cells.jsonl", []

    def measure(cell: Cell) -> dict[str, Any]:
        measured.append(cell)
        return {"right": [cell.seed]}

    cells = [Cell(name=name, seed=seed) for seed in range(2) for name in "ab"]
    run_cells(path, cells, measure, fingerprint="f", max_cells=3)
    with path.open("a") as file:
        file.write('{"cell": {"name": "b", "se')  # killed while it wrote
    run_cells(path, cells, measure, fingerprint="f")
    assert measured == cells
    lines = read_cells(path)
    assert [line["cell"] for line in lines] == [
        {"name": cell.name, "seed": cell.seed} for cell in cells
    ]
    assert {line["data"] for line in lines} == {"f"}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_an_interval_holds_the_accuracy_and_equal_cells_differ_by_nothing() -> None:
    random, num_prompts = np.random.default_rng(0), 50
    bootstrap = Bootstrap([36.0] * num_prompts, num_draws=400)
    right = {seed: random.binomial(36, 0.7, len(split(50, seed).test)) for seed in range(5)}
    lists = {seed: [float(value) for value in values] for seed, values in right.items()}
    draws = bootstrap.accuracies(lists)
    one = estimate(draws)
    assert one.value == pytest.approx(sum(map(sum, lists.values())) / (36 * num_prompts))
    assert one.low < one.value < one.high and one.high - one.low < 0.1
    difference = estimate(bootstrap.accuracies(lists) - draws)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


@given(asymptote=st.floats(0.7, 0.9), factor=st.floats(0.2, 1.0), exponent=st.floats(0.3, 1.0))
def test_the_fit_finds_the_curve_that_made_the_points(
    asymptote: float, factor: float, exponent: float
) -> None:
    sizes = [15, 30, 60, 120, 240, 480]
    law = fit(sizes, asymptote - factor * np.array(sizes, float) ** -exponent)
    assert law is not None
    assert float(law.at(100)) == pytest.approx(asymptote - factor * 100.0**-exponent, abs=1e-3)


def test_two_sizes_are_too_few_for_a_fit() -> None:
    assert fit([15, 30], np.array([0.6, 0.7])) is None
