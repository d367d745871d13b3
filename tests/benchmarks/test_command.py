"""The command line of `kwise bench`: help, and data that cannot be used."""

from pathlib import Path

import pytest

from kwise.benchmarks.command import _BENCHMARKS
from kwise.benchmarks.options import SoakConfig, TrainBenchConfig
from kwise.benchmarks.result_file import command_line
from kwise.cli import main


@pytest.mark.parametrize("arguments", [[], *([name] for name in _BENCHMARKS)])
def test_help_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments, "--help"])
    assert ended.value.code == 0
    assert "usage: kwise bench" in capsys.readouterr().out


def test_bad_rankings_are_reported_without_a_traceback(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rankings = tmp_path / "rankings.jsonl"
    rankings.write_text("{}\n")
    assert main(["bench", "precision", str(tiny_artifact), "--rankings", str(rankings)]) == 1
    assert f"{rankings}:1: row: no known format has the keys" in capsys.readouterr().err


def test_the_command_in_a_result_file_has_no_directories_and_no_defaults() -> None:
    assert command_line("soak", SoakConfig(artifact="/home/me/artifact", minutes=2.5)) == (
        "kwise bench soak artifact --minutes 2.5"
    )
    config = TrainBenchConfig(model="a/model", pairs_per_pass=(1, 2), text=Path("/a/b.txt"))
    assert command_line("train", config) == (
        "kwise bench train model --text b.txt --pairs-per-pass 1 2"
    )
