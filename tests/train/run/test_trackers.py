"""A tracker that cannot be reported to is refused before anything is computed or written."""

from pathlib import Path

import pytest

from kwise.errors import ConfigError
from kwise.train.options.config import TrainConfig
from kwise.train.run.trackers import check_tracker
from kwise.train.run.training import train
from tests.training_runs import options


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_tracker("none") == []
    with pytest.raises(
        ConfigError,
        match=r"^--report-to tensorbored: not known; known are .*none, .*tensorboard, .*wandb$",
    ):
        train(
            TrainConfig(**options(data, tiny_checkpoint, tmp_path / "out", report_to="tensorbored"))
        )
    with pytest.raises(
        ConfigError, match=r"^--report-to neptune needs its package: pip install neptune$"
    ):
        check_tracker("neptune")
    assert not (tmp_path / "out").exists()
