"""A run from rankings to checkpoint, with a tiny random model and SmolLM2's real tokenizer."""

import json
import math
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kwise.cli import main
from kwise.errors import ConfigError
from kwise.train.data.read import read_rankings
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import Overlong, TrainConfig
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.hash import rankings_sha256
from kwise.train.run.trainer import RankingTrainer
from kwise.train.run.training import train
from kwise.train.run.unfinished_run import UnfinishedRun
from kwise.train.step.losses import NotFinite
from kwise.types import Message
from tests.servers import PATIENCE_S, wait_until
from tests.tiny_models import SMALL, tiny_model
from tests.training_runs import IGNORED_WARNINGS, command, interrupted_at, options

pytestmark = IGNORED_WARNINGS


def test_training_ranks_prompts_that_it_has_not_seen(trained: Any) -> None:
    report, _ = trained
    assert report.after.accuracy > 0.9 and report.after.loss < report.before.loss


def test_a_padded_run_says_its_size_its_layout_and_why(
    data: Path, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """It was several times slower without a word."""
    model = tiny_model(
        "Bert", {**SMALL, "max_position_embeddings": 512}, smollm2_tokenizer, tmp_path
    )
    lines: list[str] = []
    report = train(TrainConfig(**options(data, model, tmp_path / "out", epochs=0.1)), lines.append)
    size = f"{report.num_steps} steps of 2 of {report.num_training} rankings: "
    (sized,) = (index for index, line in enumerate(lines) if line.startswith(size))
    assert lines[sized].endswith(f"0.1 times; {report.num_validation} rankings for validation")
    assert not any(line.startswith("validation") for line in lines[:sized])
    reason = "its reward head, classifier, does not read the last hidden state alone"
    assert f"layout: padded, because {reason}" in lines
    written = json.loads((tmp_path / "out" / "training_report.json").read_text(encoding="utf-8"))
    assert (written["layout"], written["layout_reason"]) == ("padded", reason)
    assert (report.layout, report.layout_reason) == ("padded", reason)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| layout | padded, because {reason} |" in card


def test_the_checkpoint_loads_with_plain_transformers_and_gives_the_same_reward(
    trained: Any,
) -> None:
    _, output = trained
    conversation = (
        Message(role="user", content="Question 1?"),
        Message(role="assistant", content="yes no"),
    )
    ours = load_reward_model(str(output), chat_template=None, seed=1).rewards([conversation])[0]
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(output),
        AutoTokenizer.from_pretrained(output),
    )
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation]
    with torch.inference_mode():
        plain = model(
            torch.tensor([tokenizer.apply_chat_template(messages, return_dict=False)])
        ).logits.item()
    # float32, two layers: the two differ by the mask alone.
    assert ours == pytest.approx(plain, abs=1e-5)
    assert tokenizer.is_fast and (output / "chat_template.jinja").is_file()


def test_nothing_but_the_checkpoint_and_its_report_is_left(trained: Any) -> None:
    _, output = trained
    assert not UnfinishedRun(output).path.exists() and (output / "training_report.json").is_file()


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(
    trained: Any, data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    _, uninterrupted = trained
    settings = options(data, tiny_checkpoint, tmp_path / "killed", log_every=1)
    killed = subprocess.run(command(settings, "step 7/"), capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert UnfinishedRun(settings["output"]).newest_complete()
    train(TrainConfig(**settings, resume=True))
    resumed, whole = (
        load_file(path / "model.safetensors") for path in (settings["output"], uninterrupted)
    )
    assert resumed.keys() == whole.keys()
    for name, weights in whole.items():
        # Another process may sum in another order; a lost or repeated step differs by 1e-3.
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=2e-5, msg=name)


def test_ctrl_c_exits_with_130_and_leaves_a_run_to_resume(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = options(data, tiny_checkpoint, tmp_path / "stopped", epochs=400.0)
    with subprocess.Popen(
        command(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        signal.signal(signal.SIGINT, before)
        try:
            # 400 epochs take minutes at the least.
            wait_until(lambda: bool(UnfinishedRun(settings["output"]).newest_complete()))
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert (
        UnfinishedRun(settings["output"]).newest_complete()
        and UnfinishedRun(settings["output"]).read_run()
    )


def test_a_loss_that_is_not_finite_ends_the_run_and_nothing_is_published(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was logged as 0.0000, and weights that are not numbers were published with exit code 0."""
    path, output = tmp_path / "scores.jsonl", tmp_path / "out"
    items = [{"text": text, "score": score} for text, score in (("yes", 1e30), ("no", -1e30))]
    path.write_text(json.dumps({"prompt": "Well?", "responses": items}), encoding="utf-8")
    arguments = [
        str(path),
        "--model",
        str(tiny_checkpoint),
        "--output",
        str(output),
        "--objective",
        "regression",
    ]
    assert main(["train", *arguments, "--validation-fraction", "0"]) == 1
    error = capsys.readouterr().err
    assert (
        "the loss of step 1 is not finite: [inf]" in error and "no checkpoint is written" in error
    )
    assert UnfinishedRun(output).read_run() is not None and not output.exists()


def test_weights_that_are_not_finite_after_the_last_step_are_not_published(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(trainer: RankingTrainer, checkpoint: Path | None) -> None:
        with torch.no_grad():
            trainer.model.score.weight.fill_(math.nan)

    monkeypatch.setattr(RankingTrainer, "train_from", broken)
    with pytest.raises(NotFinite, match=r"score\.weight is not finite"):
        train(TrainConfig(**options(data, tiny_checkpoint, tmp_path / "out")))
    assert UnfinishedRun(tmp_path / "out").read_run() is not None
    assert not (tmp_path / "out").exists()


def test_the_data_is_read_once_so_that_a_pipe_will_do(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """It was read again for a hash: a FIFO waited for ever, `<(cat …)` gave the hash of nothing."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(data.read_bytes()), daemon=True)
    writer.start()
    report = train(TrainConfig(**options(pipe, tiny_checkpoint, tmp_path / "out", epochs=0.1)))
    writer.join()
    assert report.rankings_sha256 == rankings_sha256(read_rankings(data)) != rankings_sha256([])


def test_rankings_computed_one_or_four_at_a_time_give_the_same_weights(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """26 rankings: the last step has two."""
    for size in (1, 4):
        changed = {"epochs": 1.0, "rankings_per_step": 4, "rankings_per_pass": size}
        train(TrainConfig(**options(data, tiny_checkpoint, tmp_path / str(size), **changed)))
    one, four = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "4"))
    for name, weights in one.items():
        torch.testing.assert_close(four[name], weights, rtol=0, atol=1e-4, msg=name)


def test_how_often_a_resumed_run_saves_and_logs_may_be_changed(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """`Trainer` took both from the state of the run before."""
    settings = options(data, tiny_checkpoint, tmp_path / "out", epochs=2.0)
    interrupted_at("step 12/", TrainConfig(**settings))
    saved: set[str] = set()

    def progress(line: str) -> None:
        saved.update(
            path.parent.name for path in tmp_path.glob("out.unfinished/checkpoint-*/complete")
        )

    report = train(
        TrainConfig(**{**settings, "resume": True, "save_every": 6, "log_every": 1}), progress
    )
    assert [loss.step for loss in report.losses if loss.step > 10] == list(range(11, 27))
    assert saved - {"checkpoint-5"} == {
        "checkpoint-10",
        "checkpoint-12",
        "checkpoint-18",
        "checkpoint-24",
        "checkpoint-26",
    }


def test_an_earlier_checkpoint_survives_a_run_that_does_not_begin(
    trained: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """--overwrite deleted it before the options, the data and the model were looked at."""
    _, output = trained
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{", encoding="utf-8")
    with pytest.raises(RankingsError):
        train(TrainConfig(**options(bad, tiny_checkpoint, output, overwrite=True)))
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before


def test_a_directory_with_something_in_it_is_refused(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        train(TrainConfig(**options(data, tiny_checkpoint, tmp_path)))
    with pytest.raises(
        ConfigError, match=r"mine\.txt, which kwise train is not known to have written"
    ):
        train(TrainConfig(**options(data, tiny_checkpoint, tmp_path, overwrite=True)))
    assert (tmp_path / "mine.txt").exists()


def test_a_conversation_over_the_limit_is_refused_by_line(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = options(data, tiny_checkpoint, tmp_path / "out", max_tokens=10)
    with pytest.raises(
        RankingsError, match=r"rankings\.jsonl:1: responses\[0\]: \d+ tokens; the limit is 10"
    ):
        train(TrainConfig(**settings))
    with pytest.raises(RankingsError):
        train(TrainConfig(**settings, overlong=Overlong.SKIP))
