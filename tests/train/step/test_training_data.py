"""The data of a run: other formats are converted, and problems are counted."""

from pathlib import Path

import pytest

from kwise.train.options.config import TrainConfig
from kwise.train.options.objectives import ObjectiveName
from kwise.train.rankings.errors import RankingsError
from kwise.train.step.training_data import read_data


def test_a_run_reads_a_table_and_says_what_it_left_out(tmp_path: Path) -> None:
    path, lines = tmp_path / "pairs.csv", list[str]()
    path.write_text("prompt,chosen,rejected\nP,good,bad\nQ,same,same\n")
    [ranking] = read_data(TrainConfig(data=str(path), model="m", output=tmp_path), lines.append)
    assert ranking.responses == ("good", "bad")
    assert lines[0].endswith("left out: 1 x row: chosen and rejected are the same")


def test_rankings_without_scores_are_named_and_counted(tmp_path: Path) -> None:
    path, lines = tmp_path / "pairs.csv", list[str]()
    path.write_text("prompt,chosen,rejected\n" + "P,good,bad\n" * 30)
    config = TrainConfig(
        data=str(path), model="m", output=tmp_path, objective=ObjectiveName.REGRESSION
    )
    with pytest.raises(RankingsError) as raised:
        read_data(config, lines.append)
    assert len(raised.value.problems) == 22
    assert raised.value.problems[-2] == (
        f"{path}: 30 of 30 rankings cannot be used (the first 20 above):"
    )
