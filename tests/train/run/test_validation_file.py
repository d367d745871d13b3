"""--validation FILE: the model is evaluated on the rankings of a file of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.errors import ConfigError
from kwise.train.data.read import read_rankings
from kwise.train.options.config import Overlong, TrainConfig
from kwise.train.options.objectives import ObjectiveName, Ties
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.hash import rankings_sha256
from kwise.train.report.evaluation import Slice
from kwise.train.run.training import train
from tests.training_runs import IGNORED_WARNINGS, command, interrupted_at, options

pytestmark = IGNORED_WARNINGS


@pytest.fixture(scope="session")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs in another format, with prompts that `data` does not have."""
    path = tmp_path_factory.mktemp("validation") / "pairs.csv"
    rows = [f"Query {number}?,yes yes yes no,no no no yes" for number in range(6)]
    path.write_text("\n".join(["prompt,chosen,rejected", *rows]), encoding="utf-8")
    return path


def settings_of(data: Path, model: Path, output: Path, validation: Any, **changed: Any) -> Any:
    return options(data, model, output, validation=str(validation), epochs=0.2, **changed)


def test_a_run_trains_on_all_rankings_and_is_evaluated_on_the_file(
    data: Path, validation: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output, lines = tmp_path / "out", list[str]()
    settings = options(data, tiny_checkpoint, output, validation=str(validation), epochs=1.0)
    report = train(TrainConfig(**settings), lines.append)
    assert f"{validation}: converted from the format" in lines[0]
    assert f"read 30 rankings and 6 for validation; loading {tiny_checkpoint}" in lines
    assert (report.num_training, report.num_validation) == (30, 6)
    assert report.before is not None and report.after is not None
    assert report.after.slices[0] == Slice(name="K = 2", num_pairs=6, accuracy=1.0)
    assert report.after.loss < report.before.loss

    sha256 = rankings_sha256(read_rankings(validation))
    written = json.loads((output / "training_report.json").read_text(encoding="utf-8"))
    assert (written["validation"], written["validation_sha256"]) == ("pairs.csv", sha256)
    assert written["config"]["validation"] == "pairs.csv"
    assert written["config"]["validation_fraction"] == 0
    card = (output / "README.md").read_text(encoding="utf-8")
    for text in (
        "| validation file | `pairs.csv` |",
        f"| sha256 of the validation rankings | `{sha256}` |",
        "| trained on | 30 rankings, 300 pairs |",
        "| validated on | 6 rankings |",
        "name: pairs.csv",
    ):
        assert text in card, text
    assert str(validation.parent) not in card


def test_the_weights_are_those_of_a_run_that_holds_nothing_out(
    data: Path, validation: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = settings_of(data, tiny_checkpoint, tmp_path / "with", validation)
    train(TrainConfig(**settings))
    without = {**settings, "validation": None, "validation_fraction": 0.0}
    train(TrainConfig(**{**without, "output": tmp_path / "without"}))
    one, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without")
    )
    assert one == other


def test_a_prompt_of_both_files_ends_the_run(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaking = tmp_path / "leaking.csv"
    leaking.write_text("prompt,chosen,rejected\nQuery 1?,yes,no\n question  7?,yes,no\n")
    arguments = command(settings_of(data, tiny_checkpoint, tmp_path / "out", leaking))[3:]
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert f"{leaking}:3: prompt: the training data has it too, in {data}:8\n" in errors
    assert f"{leaking}: 1 of 2 rankings cannot be used" in errors
    assert f"kwise train: {data} with --validation {leaking} cannot be used\n" in errors
    assert not (tmp_path / "out").exists()


def test_a_leak_of_a_ranking_that_is_skipped_is_none(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The model does not train on it."""
    long = {"text": "yes " * 60, "rank": 1}, {"text": "no", "rank": 2}
    short = {"text": "yes", "rank": 1}, {"text": "no", "rank": 2}
    extended, other = tmp_path / "extended.jsonl", tmp_path / "validation.jsonl"
    extra = json.dumps({"prompt": "Well?", "responses": long})
    extended.write_text(data.read_text(encoding="utf-8") + "\n" + extra, encoding="utf-8")
    rows = [{"prompt": "Well?", "responses": short}, {"prompt": "So?", "responses": long}]
    other.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines: list[str] = []
    settings = settings_of(extended, tiny_checkpoint, tmp_path / "out", other, max_tokens=60)
    report = train(TrainConfig(**settings, overlong=Overlong.SKIP), lines.append)
    assert (report.num_training, report.num_validation, report.num_skipped) == (30, 1, 2)
    assert any(line.startswith("skipping 2 of 33 rankings (--overlong skip)") for line in lines)
    with pytest.raises(RankingsError, match=r"extended\.jsonl:31: responses\[0\]: \d+ tokens"):
        train(TrainConfig(**settings, overwrite=True))
    settings["data"] = str(data)
    with pytest.raises(RankingsError, match=r"validation\.jsonl:2: responses\[0\]: \d+ tokens"):
        train(TrainConfig(**settings, overwrite=True))
    other.write_text(json.dumps(rows[1]), encoding="utf-8")
    with pytest.raises(RankingsError, match=r"validation\.jsonl: all 1 rankings have a conversati"):
        train(TrainConfig(**settings, overwrite=True, overlong=Overlong.SKIP))


def test_ranks_suffice_to_evaluate_a_model_that_learns_scores(
    validation: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    scored = tmp_path / "scored.jsonl"
    items = [{"text": text, "score": score} for text, score in (("yes", 1.0), ("no", 0.0))]
    scored.write_text(json.dumps({"prompt": "Well?", "responses": items}), encoding="utf-8")
    settings = settings_of(scored, tiny_checkpoint, tmp_path / "out", validation)
    report = train(TrainConfig(**settings, objective=ObjectiveName.REGRESSION))
    assert report.num_validation == 6


def test_rankings_that_are_one_tie_are_refused_as_in_the_training_data(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tied = tmp_path / "tied.jsonl"
    items = [{"text": text, "rank": 1} for text in ("yes", "no")]
    tied.write_text(json.dumps({"prompt": "Well?", "responses": items}), encoding="utf-8")
    with pytest.raises(RankingsError, match=r"tied\.jsonl:1: responses: "):
        train(TrainConfig(**settings_of(data, tiny_checkpoint, tmp_path / "out", tied)))
    settings = settings_of(data, tiny_checkpoint, tmp_path / "out", tied)
    with pytest.raises(RankingsError, match="all 1 rankings for validation are one tie"):
        train(TrainConfig(**settings, ties=Ties.DAVIDSON))


def test_a_resumed_run_wants_the_same_validation_rankings(
    data: Path, validation: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    moved, changed = tmp_path / "moved.csv", tmp_path / "changed.csv"
    text = validation.read_text(encoding="utf-8")
    moved.write_text(text, encoding="utf-8")
    changed.write_text(text.replace("Query 5?", "Query 6?"), encoding="utf-8")
    settings = settings_of(data, tiny_checkpoint, tmp_path / "out", validation, save_every=1)
    interrupted_at("step 2/", TrainConfig(**settings))
    other = r"^--resume: the rankings of --validation are not those with which the run began$"
    for validation_file in (str(changed), None):
        with pytest.raises(ConfigError, match=other):
            train(TrainConfig(**{**settings, "resume": True, "validation": validation_file}))
    report = train(TrainConfig(**{**settings, "resume": True, "validation": str(moved)}))
    assert report.validation == "moved.csv" and report.num_validation == 6


def test_several_processes_refuse_a_pipe(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """test_processes.py tests their evaluation on a file."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    settings = settings_of(data, tiny_checkpoint, tmp_path / "refused", pipe)
    arguments = ["-m", "kwise", *command(settings)[3:]]
    refused = subprocess.run([*torchrun, *arguments], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "cannot read standard input or a pipe: give --validation as a file" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-", "--validation", "-"], "DATA and --validation are both standard input"),
        (["d.jsonl", "--validation", "./d.jsonl"], "are both the file d.jsonl"),
        (
            ["d.jsonl", "--validation", "v.jsonl", "--validation-fraction", "0"],
            "--validation and --validation-fraction exclude each other",
        ),
    ],
)
def test_what_would_be_read_twice_or_ignored_is_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--model", "m", "--output", "o"]) == 2
    assert problem in capsys.readouterr().err


def test_a_missing_file_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(data), "--validation", "none.jsonl", "--model", "m", "--output", "o"]
    assert main(["train", *arguments]) == 2
    assert "none.jsonl: No such file or directory" in capsys.readouterr().err
