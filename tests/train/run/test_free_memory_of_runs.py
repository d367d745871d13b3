"""A run gives free memory back beside gradients, and in fp32 also when these have gone."""

import ctypes
import json
from pathlib import Path

import pytest

from kwise.train.model.memory.free_memory import FreeMemory
from kwise.train.options.config import Precision, TrainConfig
from kwise.train.run.training import train
from tests.training_runs import IGNORED_WARNINGS, options

pytestmark = IGNORED_WARNINGS


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim"
)
@pytest.mark.parametrize(
    ("precision", "after_gradients"), [(Precision.FP32, True), (Precision.BF16, False)]
)
def test_only_fp32_gives_memory_back_after_gradients(
    precision: Precision,
    after_gradients: bool,
    data: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[FreeMemory] = []
    monkeypatch.setattr(FreeMemory, "__call__", lambda self: calls.append(self))
    changed = {"epochs": 1.0, "rankings_per_pass": 1, "precision": precision}
    report = train(TrainConfig(**options(data, tiny_checkpoint, tmp_path / "out", **changed)))
    config = json.loads((tiny_checkpoint / "config.json").read_text(encoding="utf-8"))
    num_layers = config["num_hidden_layers"]
    # Each step has two passes: the first follows the gradients of the step before, the second has
    # those of the first.
    beside = report.num_steps * len({num_layers // 2, num_layers * 5 // 6})
    assert len(calls) == beside + (report.num_steps - 1) * after_gradients
