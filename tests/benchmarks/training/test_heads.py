"""`kwise bench heads`: heads on frozen states are trained as kwise train trains them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kwise.benchmarks.training.heads import judged, pair_losses
from kwise.cli import main
from kwise.train.options.objectives import ObjectiveConfig
from kwise.train.report.members import margins_of
from kwise.train.step.losses import Labels, batch_losses, ranking_loss


def test_the_loss_is_that_of_training() -> None:
    torch.manual_seed(0)
    states, head = torch.randn(7, 6), nn.Linear(6, 4, bias=False)
    ranks = torch.tensor([2, 1, 2, 1, 4, 3, 2])
    learning_BH = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    expected = batch_losses(
        head(states),
        Labels(ranks, torch.full((7,), torch.nan)),
        [3, 4],
        learning_BH,
        ranking_loss(ObjectiveConfig()),
    ).mean()
    differences = [margins_of(states[:3], ranks[:3]), margins_of(states[3:], ranks[3:])]
    torch.testing.assert_close(pair_losses(differences, list(learning_BH), head), expected)


def test_dropping_the_pair_on_which_heads_disagree_keeps_the_right_ones() -> None:
    """The mean orders the two in the middle wrongly, by little, and the heads disagree on them."""
    rewards = torch.tensor([[9.0, 9.0], [5.0, 6.0], [6.0, 5.2], [0.0, 0.0]])
    figures = judged([rewards], [torch.tensor([1, 2, 3, 4])])
    assert figures.accuracy == pytest.approx(5 / 6)
    assert figures.auroc_of_std == figures.auroc_of_margin == figures.auroc_of_ratio == 1.0
    assert [kept["25%"] for kept in figures.kept.values()] == [1.0, 1.0, 1.0]
    assert figures.correlation > 0.5


def test_the_table_and_the_file_have_every_number_of_heads(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rankings.jsonl"
    lines = []
    for number in range(12):
        texts = [" ".join(["yes"] * good + ["no"] * (2 - good)) for good in range(3)]
        items = [{"text": text, "rank": 3 - good} for good, text in enumerate(texts)]
        lines.append(json.dumps({"prompt": f"Question {number}?", "responses": items}))
    data.write_text("\n".join(lines))
    states, written = tmp_path / "states.npz", tmp_path / "heads.json"
    options = ["--states", str(states), "--json", str(written), "--seeds", "2", "--epochs", "30"]
    arguments = [str(tiny_checkpoint), str(data), *options, "--heads", "2", "3", "--shares", "1"]
    assert main(["bench", "heads", *arguments, "--num-rankings", "8"]) == 0
    first = states.read_bytes()
    assert main(["bench", "heads", *arguments]) == 0  # continues the file of states
    assert states.read_bytes() != first
    result: dict[str, Any] = json.loads(written.read_text())
    assert [(r["heads"], r["learning"]) for r in result["results"]] == [(2, 2), (3, 3)]
    assert all(seed["accuracy"] > 0.8 for r in result["results"] for seed in r["seeds"])
    assert result["options"]["states"] == "states.npz" and result["num_rankings"] == 12
    assert "12 rankings, 36 pairs" in capsys.readouterr().out
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines[:5]))
    assert main(["bench", "heads", str(tiny_checkpoint), str(other), "--states", str(states)]) == 2
    assert "is of other rankings" in capsys.readouterr().err
