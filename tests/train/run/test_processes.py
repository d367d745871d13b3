"""Two processes give the losses and the weights of one, with whole or with sharded weights."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kwise.errors import ConfigError
from kwise.train.options.config import Pooling, TrainConfig
from kwise.train.run.processes import Processes
from kwise.train.run.training import train
from kwise.train.run.unfinished_run import UnfinishedRun
from kwise.train.step.epoch_order import EpochOrder
from tests.real_data import ROOT
from tests.training_runs import IGNORED_WARNINGS, KILL_AT, command, options

pytestmark = IGNORED_WARNINGS


NUM_RANKINGS = 27
"""The last step of an epoch has three, so one process has only a filler in it."""
CHANGED = {
    "epochs": 2.0,
    "rankings_per_step": 4,
    "log_every": 1,
    "eval_every": 4,
    "save_every": 2,
    "heads": 3,
    "pooling": Pooling.MEAN,
}
FSDP = [
    "-m",
    "accelerate.commands.launch",
    f"--config_file={ROOT / 'train/launch/fsdp.yaml'}",
    "--num_processes=2",
]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
LAUNCHES = {
    "whole": (TORCHRUN, ["-m", "kwise"]),
    "sharded": (FSDP, [str(ROOT / "tests/programs/fsdp_on_cpus.py")]),
}


def launched(name: str, settings: dict[str, Any], killed_at: str = "") -> list[str]:
    """Return the command that trains in two processes, and kills them at a line of progress."""
    launcher, program = LAUNCHES[name]
    if killed_at:
        program = [KILL_AT, killed_at, *program]
    return [sys.executable, *launcher, *program, *command(settings)[3:]]


@pytest.fixture(scope="module")
def files(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """`data` in two files: to train on, and for --validation."""
    directory = tmp_path_factory.mktemp("files")
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "training.jsonl").write_text("".join(lines[:NUM_RANKINGS]), encoding="utf-8")
    (directory / "validation.jsonl").write_text("".join(lines[NUM_RANKINGS:]), encoding="utf-8")
    return directory / "training.jsonl", directory / "validation.jsonl"


def options_of(files: tuple[Path, Path], model: Path, output: Path) -> Any:
    return options(files[0], model, output, validation=str(files[1]), **CHANGED)


@pytest.fixture(scope="module")
def one(files: tuple[Path, Path], headless: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(report, weights, means of the three heads) of one process."""
    output = tmp_path_factory.mktemp("one") / "checkpoint"
    report = train(TrainConfig(**options_of(files, headless, output)))
    config = json.loads((output / "config.json").read_text())
    return report, load_file(output / "model.safetensors"), config["kwise_member_means"]


@pytest.mark.parametrize("launch", LAUNCHES)
def test_two_processes_killed_and_resumed_give_the_losses_and_weights_of_one(
    launch: str, one: Any, files: tuple[Path, Path], headless: Path, tmp_path: Path
) -> None:
    report, expected, means = one
    two = options_of(files, headless, tmp_path / "two")
    # A step is saved at 2; the process that prints is killed at 4, and the other with it.
    killed = subprocess.run(launched(launch, two, "step 4/"), capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert UnfinishedRun(two["output"]).newest_complete()
    finished = subprocess.run([*launched(launch, two), "--resume"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert (
        finished.stdout.count("checkpoint: ") == finished.stderr.count("resuming after step") == 1
    )
    assert report.num_training == NUM_RANKINGS
    written = json.loads((tmp_path / "two" / "training_report.json").read_text())
    assert written["num_processes"] == 2 and written["num_steps"] == report.num_steps == 14
    assert written["validation_sha256"] == report.validation_sha256
    assert written["after"]["loss"] == pytest.approx(report.after.loss, abs=1e-5)
    # Trainer rounds what it logs to 1e-4.
    assert [loss["loss"] for loss in written["losses"]] == pytest.approx(
        [loss.loss for loss in report.losses], abs=2e-4
    )
    assert [e["loss"] for e in written["evaluations"]] == pytest.approx(
        [e.loss for e in report.evaluations], abs=1e-5
    )
    assert written["sharded"] is (launch == "sharded")
    weights = load_file(tmp_path / "two" / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=name)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["kwise_members"] == 3
    assert config["kwise_member_means"] == pytest.approx(means, abs=1e-4)
    assert not UnfinishedRun(tmp_path / "two").path.exists()


def test_a_launchers_mixed_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --mixed_precision bf16` rounded the rewards to 8 bits."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match=r"launched with mixed precision bf16, .*--precision$"):
        Processes()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert Processes().count == 1


def test_an_epoch_is_a_permutation_that_several_processes_fill_up() -> None:
    order, filled = EpochOrder(27, seed=3, per_round=1), EpochOrder(27, seed=3, per_round=4)
    first = list(order)
    assert sorted(first) == list(range(27)) and list(filled) == [*first, 27]
    order.set_epoch(1)
    assert sorted(order) == sorted(first) and list(order) != first
    assert list(EpochOrder(27, seed=4, per_round=1)) != first
