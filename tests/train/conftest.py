"""A data set and a finished run that the tests of training share."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.train.options.config import TrainConfig
from kwise.train.run.training import train
from tests.edited_checkpoints import copy_checkpoint
from tests.training_runs import options


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty prompts, with five responses each. The better a response, the more "yes" it has."""
    path = tmp_path_factory.mktemp("data") / "rankings.jsonl"
    lines = []
    for number in range(30):
        texts = [" ".join(["yes"] * good + ["no"] * (4 - good)) for good in range(5)]
        items = [{"text": text, "rank": 5 - good} for good, text in enumerate(texts)]
        lines.append(json.dumps({"prompt": f"Question {number}?", "responses": items}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(data: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report and the output directory of a run of 52 steps."""
    output = tmp_path_factory.mktemp("trained") / "checkpoint"
    return train(TrainConfig(**options(data, tiny_checkpoint, output))), output


@pytest.fixture(scope="session")
def headless(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without its head, so that training starts with new ones."""
    return copy_checkpoint(
        tiny_checkpoint,
        tmp_path_factory.mktemp("headless") / "checkpoint",
        change=lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("score.")},
    )
