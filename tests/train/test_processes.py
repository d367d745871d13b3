"""Two processes give the losses and the weights of one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from training_runs import IGNORED_WARNINGS, command, options

from kwise.engine.errors import ConfigError
from kwise.train.config import TrainConfig
from kwise.train.order import EpochOrder
from kwise.train.processes import Processes
from kwise.train.steps import StepsDir
from kwise.train.training import train

pytestmark = IGNORED_WARNINGS


@pytest.mark.timeout(120)
def test_two_processes_killed_and_resumed_give_the_losses_and_weights_of_one(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """27 rankings: the last step of an epoch has three, so one of the processes has nothing to do in its last pass."""
    changed = {
        "epochs": 2.0,
        "rankings_per_step": 4,
        "validation_fraction": 0.1,
        "log_every": 1,
        "eval_every": 4,
        "save_every": 2,
    }
    one, two = (options(data, tiny_checkpoint, tmp_path / name, **changed) for name in ("one", "two"))
    report = train(TrainConfig(**one))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with subprocess.Popen([*launch, *command(two)[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not StepsDir(two["output"]).newest_complete():
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.01)
        finally:
            workers = psutil.Process(process.pid).children(recursive=True)
            for each in (*workers, process):
                each.kill()
            psutil.wait_procs(workers)
    assert (two["output"] / "steps").is_dir(), "it had finished when it was killed"
    finished = subprocess.run([*launch, *command(two)[1:], "--resume"], capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("checkpoint: ") == finished.stderr.count("resuming after step") == 1
    assert report.num_training == 27
    written = json.loads((tmp_path / "two" / "training_report.json").read_text())
    assert written["num_processes"] == 2 and written["num_steps"] == report.num_steps == 14
    # Trainer rounds what it logs to 1e-4.
    assert [loss["loss"] for loss in written["losses"]] == pytest.approx([loss.loss for loss in report.losses], abs=2e-4)
    assert [e["loss"] for e in written["evaluations"]] == pytest.approx([e.loss for e in report.evaluations], abs=1e-5)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, weights in ours.items():
        torch.testing.assert_close(theirs[name], weights, rtol=0, atol=1e-5, msg=name)
    assert not (tmp_path / "two" / "steps").exists()


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
