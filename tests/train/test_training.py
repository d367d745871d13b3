"""A run from rankings to checkpoint, with a tiny model of random weights and SmolLM2's real tokenizer."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import IGNORED_WARNINGS, command, options
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kwise.engine.errors import ConfigError
from kwise.engine.types import Message
from kwise.train.config import Overlong, TrainConfig
from kwise.train.model import load_reward_model
from kwise.train.rankings import RankingsError
from kwise.train.steps import StepsDir
from kwise.train.training import train

pytestmark = IGNORED_WARNINGS


def test_training_ranks_prompts_that_it_has_not_seen(trained: Any) -> None:
    report, _ = trained
    assert report.after.accuracy > 0.9 and report.after.loss < report.before.loss


def test_the_checkpoint_loads_with_plain_transformers_and_gives_the_same_reward(trained: Any) -> None:
    _, output = trained
    conversation = (Message(role="user", content="Question 1?"), Message(role="assistant", content="yes no"))
    ours = load_reward_model(str(output), chat_template=None, seed=1).rewards([conversation])[0]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation]
    with torch.inference_mode():
        plain = model(torch.tensor([tokenizer.apply_chat_template(messages)])).logits.item()
    # float32, two layers: the two differ by the mask alone.
    assert ours == pytest.approx(plain, abs=1e-5)
    assert tokenizer.is_fast and (output / "chat_template.jinja").is_file()


def test_nothing_but_the_checkpoint_and_its_report_is_left(trained: Any) -> None:
    _, output = trained
    assert not (output / "steps").exists() and (output / "training_report.json").is_file()


@pytest.mark.timeout(120)
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(
    trained: Any, data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    _, uninterrupted = trained
    settings = options(data, tiny_checkpoint, tmp_path / "killed")
    process = subprocess.Popen(command(settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(settings["output"].glob("steps/checkpoint-*/complete")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (settings["output"] / "steps").is_dir(), "it had finished when it was killed"
    train(TrainConfig(**settings, resume=True))
    resumed, whole = (load_file(path / "model.safetensors") for path in (settings["output"], uninterrupted))
    assert resumed.keys() == whole.keys()
    for name, weights in whole.items():
        # Threads may sum in another order in another process; a lost or repeated step differs by 1e-3.
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=2e-5, msg=name)


@pytest.mark.timeout(120)
def test_ctrl_c_exits_with_130_and_leaves_a_run_to_resume(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = options(data, tiny_checkpoint, tmp_path / "stopped", epochs=400.0)
    with subprocess.Popen(command(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        try:
            while not StepsDir(settings["output"]).newest_complete():
                assert process.poll() is None, "it ended before it could be stopped"
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert StepsDir(settings["output"]).newest_complete() and StepsDir(settings["output"]).read_run()


def test_an_earlier_checkpoint_survives_a_run_that_does_not_begin(trained: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """--overwrite deleted it before the options, the data and the model were looked at."""
    _, output = trained
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{", encoding="utf-8")
    with pytest.raises(RankingsError):
        train(TrainConfig(**options(bad, tiny_checkpoint, output, overwrite=True)))
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before


def test_a_half_written_step_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for name in ("checkpoint-5", "checkpoint-10"):
        (tmp_path / "steps" / name).mkdir(parents=True)
    (tmp_path / "steps" / "checkpoint-5" / "complete").touch()
    assert StepsDir(tmp_path).newest_complete() == tmp_path / "steps" / "checkpoint-5"


def test_a_directory_with_something_in_it_is_refused(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        train(TrainConfig(**options(data, tiny_checkpoint, tmp_path)))
    with pytest.raises(ConfigError, match=r"mine\.txt, which kwise train is not known to have written"):
        train(TrainConfig(**options(data, tiny_checkpoint, tmp_path, overwrite=True)))
    assert (tmp_path / "mine.txt").exists()


def test_a_conversation_over_the_limit_is_refused_by_line(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = options(data, tiny_checkpoint, tmp_path / "out", max_tokens=10)
    with pytest.raises(RankingsError, match=r"rankings\.jsonl:1: responses\[0\]: \d+ tokens; the limit is 10"):
        train(TrainConfig(**settings))
    with pytest.raises(RankingsError):
        train(TrainConfig(**settings, overlong=Overlong.SKIP))
