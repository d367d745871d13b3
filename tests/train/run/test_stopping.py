"""Early stopping keeps the best weights, and resuming changes nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kwise.errors import ConfigError
from kwise.train.options.config import TrainConfig
from kwise.train.run.training import train
from tests.training_runs import IGNORED_WARNINGS, interrupted_at, options

pytestmark = IGNORED_WARNINGS


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rankings without a rule, which can only be memorised: the validation loss soon rises."""
    random.seed(0)
    words = Path(__file__).read_text(encoding="utf-8").split()
    path = tmp_path_factory.mktemp("noise") / "rankings.jsonl"
    lines = []
    for number in range(20):
        items = [{"text": " ".join(random.sample(words, 5)), "rank": rank} for rank in (1, 2, 3)]
        lines.append(json.dumps({"prompt": f"Question {number}?", "responses": items}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def stopping(noise: Path, model: Path, output: Path, **changed: Any) -> dict[str, Any]:
    base = {
        "epochs": 8.0,
        "rankings_per_step": 4,
        "validation_fraction": 0.2,
        "log_every": 1,
        "save_every": 0,
    }
    return options(
        noise, model, output, **{**base, "eval_every": 3, "early_stopping_patience": 2, **changed}
    )


def test_training_stops_keeps_the_best_weights_and_resumes_exactly(
    noise: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    report = train(TrainConfig(**stopping(noise, tiny_checkpoint, tmp_path / "whole")))
    assert report.after is not None
    losses = [evaluation.loss for evaluation in report.evaluations]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3, "two evaluations after the best were no better"
    assert report.num_steps == 3 * len(losses) < 32 and report.best_step == 3 * (best + 1)
    assert (
        report.after.loss == pytest.approx(losses[best], abs=1e-6)
        and losses[-1] > losses[best] + 0.01
    )
    whole = load_file(tmp_path / "whole" / "model.safetensors")

    settings = stopping(noise, tiny_checkpoint, tmp_path / "parted")
    # Once while patience is left, which must be restored; once after the end of training.
    last = report.num_steps
    for line in (f"step {last - 2}/", "validation after training"):
        interrupted_at(line, TrainConfig(**settings))
        settings["resume"] = True
    resumed = train(TrainConfig(**settings))
    assert (resumed.num_steps, resumed.best_step) == (report.num_steps, report.best_step)
    assert [e.step for e in resumed.losses] == [e.step for e in report.losses]
    assert [e.loss for e in resumed.losses] == pytest.approx(
        [e.loss for e in report.losses], abs=2e-4
    )
    assert [e.loss for e in resumed.evaluations] == pytest.approx(losses, abs=1e-5)
    parted = load_file(tmp_path / "parted" / "model.safetensors")
    for name, weights in whole.items():
        torch.testing.assert_close(parted[name], weights, rtol=0, atol=2e-5, msg=name)


def test_evaluating_changes_no_weight_and_prints_a_line(
    noise: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    for name, changed in (("plain", {"eval_every": 0}), ("evaluated", {"eval_every": 3})):
        settings = stopping(
            noise,
            tiny_checkpoint,
            tmp_path / name,
            epochs=2.0,
            early_stopping_patience=0,
            **changed,
        )
        train(TrainConfig(**settings), lines.append)
    evaluated = [line for line in lines if line.startswith("validation at step")]
    assert [line.split(":")[0] for line in evaluated] == [
        "validation at step 3",
        "validation at step 6",
    ]
    plain, other = (
        load_file(tmp_path / name / "model.safetensors") for name in ("plain", "evaluated")
    )
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_what_could_not_stop_anything_is_refused(
    noise: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = stopping(noise, tiny_checkpoint, tmp_path / "out")
    with pytest.raises(ConfigError, match="--early-stopping-patience needs --eval-every"):
        TrainConfig(**{**settings, "eval_every": 0})
    with pytest.raises(ConfigError, match="--eval-every needs a validation split"):
        TrainConfig(**{**settings, "validation_fraction": 0.0})
    with pytest.raises(ConfigError, match="--eval-every is 100; the run has 32 steps"):
        train(TrainConfig(**{**settings, "eval_every": 100}))
    assert not (tmp_path / "out").exists()
