"""The mean of the weights of several runs (Wortsman et al. 2022, Ramé et al. 2024)."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from torch import nn

from kwise.errors import ConfigError, LibraryFailed
from kwise.libraries.errors import library_errors
from kwise.publish import check_writable, publish_directory
from kwise.train.average.agreement import Run, check_agreement
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.reward_model import load_reward_model
from kwise.train.report.model_card import CARD_NAME, LOADING, NO_LICENCE, card_of
from kwise.train.report.provenance import model_sha256, versions
from kwise.train.run.unfinished_run import REPORT_NAME

_SHARED = (
    "rankings_sha256",
    "model_sha256",
    "tokenizer_sha256",
    "template",
    "template_sha256",
    "template_date",
)
"""The entries of training_report.json that the mean's report has too, if all runs agree."""


def average(checkpoints: Sequence[str], output: Path) -> list[str]:
    """Write a checkpoint whose weights are the mean of those of `checkpoints`, in float32.

    One model and the mean are in memory at a time.

    Args:
        checkpoints: the directories of runs of `kwise train`.
        output: the directory of the mean; it must not exist.

    Returns:
        Notes on what could not be checked, and on what the checkpoints have and the mean has not.

    Raises:
        ConfigError: see `check_agreement` and `load_checkpoint`; or `output` exists or cannot be
            written.
        OSError: a file cannot be read or written.
        LibraryFailed: safetensors or transformers failed while writing.
    """
    output = Path(os.path.realpath(output))  # a missing directory before ".." is made below
    _check_output(output)
    runs = [Run.read(name) for name in checkpoints]
    notes = check_agreement(runs)
    first, *others = checkpoints
    with library_errors(f"CHECKPOINT {first}: cannot be read"):
        # As for training, because what its config states of its rewards is not true of the mean.
        mean = load_reward_model(first, num_heads=None, option="CHECKPOINT")
    if mean.new_layers:
        raise ConfigError(f"CHECKPOINT {first}: it has no {mean.new_layers[0]}")
    notes += mean.notes
    for count, name in enumerate(others, start=2):
        with library_errors(f"CHECKPOINT {name}: cannot be read"):
            other = load_checkpoint("CHECKPOINT", name, to_train=False)
        notes += [f"{name}: {note}" for note in other.notes]
        _move(mean.model, other.model, 1 / count)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kwise-average-", dir=output.parent) as scratch:
        work = Path(scratch) / output.name
        work.mkdir()
        with library_errors(f"--output {output}: cannot be written", raises=LibraryFailed):
            mean.save(work)
        (work / REPORT_NAME).write_text(_report(runs), encoding="utf-8")
        _card(runs).save(work / CARD_NAME)
        _check_output(output)  # another command may have written it meanwhile
        publish_directory(work, output)
    return notes


def _check_output(output: Path) -> None:
    """Raise ConfigError if `output` exists, or nothing can be written beside it."""
    if output.exists() or output.is_symlink():
        raise ConfigError(f"--output: {output} exists; name another directory")
    check_writable("--output", output)


@torch.no_grad()
def _move(mean: nn.Module, other: nn.Module, part: float) -> None:
    """Move each weight of `mean` by a part of the way to that of `other`; equal ones stay.

    The means of more than two models follow one after another, with parts of 1/2, 1/3, ...
    """
    weights = dict(other.named_parameters())
    for name, parameter in mean.named_parameters():  # a tied weight once
        parameter.lerp_(weights[name], part)


def _report(runs: Sequence[Run]) -> str:
    """Return training_report.json of the mean."""
    reports = [run.report for run in runs]
    shared = {
        key: reports[0][key]
        for key in _SHARED
        if all(key in report and report[key] == reports[0].get(key) for report in reports)
    }
    members = [
        {"checkpoint": Path(run.name).resolve().name, "sha256": model_sha256(run.name)}
        for run in runs
    ]
    return json.dumps({"average_of": members, **shared, "versions": versions()}, indent=2) + "\n"


def _card(runs: Sequence[Run]) -> ModelCard:
    """Return the README.md of the mean."""
    sections = (
        "# Reward model",
        "`kwise average` made it: its weights are the mean of those of "
        f"{len(runs)} runs of `kwise train`:",
        "\n".join(f"- `{Path(run.name).resolve().name}`" for run in runs),
        LOADING,
        NO_LICENCE,
    )
    return card_of(sections)
