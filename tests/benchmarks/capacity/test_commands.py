"""`kwise bench queue` and `kwise bench cluster` from the command line to their files."""

import json
from pathlib import Path

import pytest

from kwise.benchmarks.capacity.routers import ROUTERS
from kwise.cli import main
from tests.real_data import ROOT


def test_a_queue_is_measured_and_simulated_again_from_its_file(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    options = ["--cell", "12/6/3", "--groups", "4", "--loads", "0.5", "--seeds", "1", "2"]
    options += ["--repeats", "1"]
    command = ["bench", "queue", str(tiny_artifact), *options, "--json"]
    assert main([*command, str(first)]) == 0
    assert "p99" in capsys.readouterr().out
    measured = json.loads(first.read_text())
    assert [run["measured"]["rows"] for run in measured["runs"]] == [4 * (12 + 6 * 3)] * 2
    assert [run["scaled"]["rows"] for run in measured["runs"]] == [4 * (12 + 6 * 3)] * 2
    assert main([*command, str(again), "--measured", str(first)]) == 0
    simulated = json.loads(again.read_text())
    assert {name: simulated[name] for name in ("runs", "loads", "rounds")} == {
        name: measured[name] for name in ("runs", "loads", "rounds")
    }


def test_an_engine_with_paced_passes_makes_the_simulated_passes(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    path = tmp_path / "paced.json"
    options = ["--cell", "256/128/9", "--groups", "6", "--loads", "0.99", "--seeds", "1"]
    options += ["--paced", "--pace", "0.01", "--json", str(path)]
    assert main(["bench", "queue", str(tiny_artifact), *options]) == 0
    [run] = json.loads(path.read_text())["runs"]
    assert run["measured"]["rows"] == run["fitted"]["rows"] == 6 * (256 + 9 * 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cell", "2000/500/9"], "--cell is 2000/500/9; a batch is too small for it"),
        (["--measured", "setup.py"], "--measured setup.py: not a file of kwise bench queue"),
        (
            ["--measured", "benchmarks/results/smollm2-load-fp32-2-cores.json"],
            "not a file of kwise bench queue",
        ),
        (["--loads", "1.5"], "--loads is 1.5; it must be at most 0.99"),
    ],
)
def test_wrong_options_of_a_queue_are_told(
    options: list[str],
    message: str,
    tiny_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["bench", "queue", str(tiny_artifact), *options]) == 2
    assert message in capsys.readouterr().err


def test_every_study_of_a_cluster_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.json"
    options = ["--cell", "8/4/2", "--replicas", "3", "--groups", "1", "--min-groups", "20"]
    options += ["--studies", "groups", "singles", "loss", "--row-ms", "10"]
    options += ["--routers", *ROUTERS]
    assert main(["bench", "cluster", *options, "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert len(written["groups"]) == len(written["singles"]) == 5
    assert {row["answered"] for row in written["loss"]} == {20}
    assert "busiest" in capsys.readouterr().out
