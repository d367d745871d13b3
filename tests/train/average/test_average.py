"""`kwise average`: the mean of the weights of runs that started from the same weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from kwise.cli import main
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import Pooling, TrainConfig
from kwise.train.run.training import train
from kwise.types import Message
from tests.edited_checkpoints import copy_checkpoint
from tests.training_runs import IGNORED_WARNINGS, options

pytestmark = IGNORED_WARNINGS

CONVERSATION = (
    Message(role="user", content="Why?"),
    Message(role="assistant", content="yes no yes"),
)


@pytest.fixture(scope="module")
def runs(data: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three short runs from the same weights."""
    directory = tmp_path_factory.mktemp("runs")
    outputs = [directory / f"seed-{seed}" for seed in range(3)]
    for seed, output in enumerate(outputs):
        settings = options(data, tiny_checkpoint, output, epochs=0.2, seed=seed)
        train(TrainConfig(**settings), lambda line: None)
    return outputs


SEEDS = (
    "note: the runs have different seeds, so if the model had no head, their heads started apart\n"
    "note: each seed held out other prompts of DATA, so evaluate the mean on prompts that no run "
    "was trained on\n"
)


def _average(capsys: Any, *checkpoints: Path, output: Path) -> tuple[int, str]:
    """Return the exit code and what was printed on standard error."""
    capsys.readouterr()
    code = main(["average", *map(str, checkpoints), "--output", str(output)])
    return code, capsys.readouterr().err


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights as plain transformers loads them."""
    return AutoModelForSequenceClassification.from_pretrained(checkpoint).state_dict()


def test_each_weight_is_the_mean_of_the_runs(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "new" / "mean"
    assert _average(capsys, *runs, output=output) == (0, SEEDS)
    members = [_weights(run) for run in runs]
    mean = _weights(output)
    assert mean.keys() == members[0].keys()
    for name, got in mean.items():
        expected = torch.stack([member[name].double() for member in members]).mean(0)
        assert torch.allclose(got.double(), expected, rtol=1e-6, atol=1e-7), name
        assert not torch.equal(got, members[0][name]) or torch.equal(
            members[0][name], members[1][name]
        ), name
    # It is not the mean of the rewards, but of a checkpoint that every command reads.
    (reward,) = load_reward_model(str(output), to_train=False).rewards([CONVERSATION])
    assert isinstance(reward, float)


def test_the_mean_of_equal_weights_has_their_rewards(
    runs: list[Path], tmp_path: Path, capsys: Any
) -> None:
    copies = [runs[0], *(shutil.copytree(runs[0], tmp_path / name) for name in ("a", "b"))]
    assert _average(capsys, *copies, output=tmp_path / "mean")[0] == 0
    ours = load_file(runs[0] / "model.safetensors")
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert ours.keys() == mean.keys() and all(torch.equal(mean[name], ours[name]) for name in ours)
    rewards = [
        load_reward_model(str(path), to_train=False).rewards([CONVERSATION])
        for path in (runs[0], tmp_path / "mean")
    ]
    assert rewards[0] == rewards[1]


def test_the_report_and_the_card_name_the_runs(
    runs: list[Path], tmp_path: Path, capsys: Any
) -> None:
    assert _average(capsys, *runs, output=tmp_path / "mean")[0] == 0
    report = json.loads((tmp_path / "mean" / "training_report.json").read_text())
    of_run = json.loads((runs[0] / "training_report.json").read_text())
    assert [member["checkpoint"] for member in report["average_of"]] == [run.name for run in runs]
    assert len({member["sha256"] for member in report["average_of"]}) == 3
    for key in ("model_sha256", "template_sha256", "rankings_sha256"):
        assert report[key] == of_run[key]
    card = (tmp_path / "mean" / "README.md").read_text()
    assert all(f"`{run.name}`" in card for run in runs)
    assert card.startswith("---\n") and "pipeline_tag: text-classification" in card
    # A mean can be one of several again.
    assert _average(capsys, tmp_path / "mean", runs[0], output=tmp_path / "again")[0] == 0


def test_models_that_have_no_mean_are_refused(
    runs: list[Path], data: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    other_start = copy_checkpoint(
        tiny_checkpoint,
        tmp_path / "start",
        change=lambda tensors: {name: tensor * 1.1 for name, tensor in tensors.items()},
    )
    trained = {}
    for name, model, changed in (
        ("other-start", other_start, {}),
        ("one-layer", tiny_checkpoint, {"layers": 1}),
        ("pooled", tiny_checkpoint, {"pooling": Pooling.MEAN}),
    ):
        trained[name] = tmp_path / name
        settings = options(data, model, trained[name], epochs=0.1, **changed)
        train(TrainConfig(**settings), lambda line: None)
    template = shutil.copytree(runs[1], tmp_path / "template")
    jinja = template / "chat_template.jinja"
    jinja.write_text(jinja.read_text().replace("<|im_end|>", "<|im_end|> "))
    (tmp_path / "plain").mkdir()
    (shutil.copytree(runs[1], tmp_path / "list") / "config.json").write_text("[]")
    for name, problem in {
        "other-start": "not trained from the same weights",
        "one-layer": "num_hidden_layers in config.json is 1, and in that of",
        "pooled": "kwise_response_header in config.json is [",
        "template": "its chat template, or the date that it prints, is not",
        "plain": "not a directory with a readable config.json",
        "missing": "not a directory with a readable config.json",
        "list": "not a directory with a readable config.json",
    }.items():
        code, error = _average(capsys, runs[0], tmp_path / name, output=tmp_path / "mean")
        assert code == 2, name
        assert str(tmp_path / name) in error and problem in error, error
        assert not (tmp_path / "mean").exists()
    assert "CHECKPOINT: give two or more" in _average(capsys, runs[0], output=tmp_path / "mean")[1]
    link = tmp_path / "link"
    link.symlink_to(runs[0])
    assert "is given twice" in _average(capsys, runs[0], link, output=tmp_path / "mean")[1]
    code, error = _average(capsys, *runs, output=runs[0])
    assert (code, "exists" in error) == (2, True)
    assert main(["average", *map(str, runs)]) == 2
    assert "--output is required" in capsys.readouterr().err
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_heads_are_refused(data: Path, headless: Path, tmp_path: Path, capsys: Any) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    for seed, output in enumerate(outputs):
        settings = options(data, headless, output, epochs=0.1, heads=2, seed=seed)
        train(TrainConfig(**settings), lambda line: None)
    code, error = _average(capsys, *outputs, output=tmp_path / "mean")
    assert code == 2
    assert f"CHECKPOINT {outputs[0]} has 2 heads" in error, error


def test_a_checkpoint_without_a_report_is_averaged_with_a_note(
    runs: list[Path], tmp_path: Path, capsys: Any
) -> None:
    copied = shutil.copytree(runs[1], tmp_path / "copied")
    report = copied / "training_report.json"
    for number, content in enumerate((None, "{bad")):
        if content is None:
            report.unlink()
        else:
            report.write_text(content)
        code, error = _average(capsys, runs[0], copied, output=tmp_path / f"mean-{number}")
        assert code == 0
        assert error == (
            f"note: {copied} has no readable training_report.json of kwise train, so nothing shows "
            "that it was trained from the same weights\n"
        )


def test_a_directory_that_exists_is_never_replaced(
    runs: list[Path], tmp_path: Path, capsys: Any
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "keep.txt").write_text("kept")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for output in (
        precious,
        tmp_path / "new" / ".." / "precious",
        tmp_path / "link",
        tmp_path / "loop",
    ):
        code, error = _average(capsys, *runs[:2], output=output)
        assert (code, "exists; name another directory" in error) == (2, True), error
    assert (precious / "keep.txt").read_text() == "kept"


def test_the_mean_does_not_state_the_rewards_of_one_run(
    runs: list[Path], tmp_path: Path, capsys: Any
) -> None:
    stated = [copy_checkpoint(run, tmp_path / run.name, mean=1.5, std=2.0) for run in runs[:2]]
    code, error = _average(capsys, *stated, output=tmp_path / "mean")
    assert code == 0
    assert "config.json: mean and std describe rewards before training" in error
    config = json.loads((tmp_path / "mean" / "config.json").read_text())
    assert not {"mean", "std"} & config.keys()
