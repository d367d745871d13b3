"""The benchmark of precisions: its arithmetic, and all figures of a run on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.benchmarks.model.contender import figure_of
from kwise.cli import main
from tests.exports import export_quietly


def test_ratios_are_within_a_repeat_and_without_the_warm_up() -> None:
    figure = figure_of([50.0, 2.0, 8.0, 3.0], [1.0, 1.0, 4.0, 1.0])
    assert figure == {"seconds": 3.0, "ratio": 2.0, "runs": 3}


@pytest.mark.parametrize(
    ("seconds", "reference", "ratio"),
    [
        ([60.0], [2.0, 1.0, 1.0], 30.0),
        ([9.0, 6.0], [9.0, 2.0, 3.0], 3.0),
        ([9.0, 6.0, 5.0], [3.0], 3.0),
        ([4.0], [2.0], 2.0),
    ],
)
def test_a_contender_that_stopped_early_is_compared_within_its_own_repeats(
    seconds: list[float], reference: list[float], ratio: float
) -> None:
    assert figure_of(seconds, reference)["ratio"] == ratio
    assert figure_of(seconds, reference)["runs"] == max(len(seconds) - 1, 1)


def test_all_contenders_are_measured_or_skipped_with_a_reason(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = export_quietly(
        tiny_checkpoint, tmp_path / "artifact", dtype="fp32,int8", min_agreement=0.5
    )
    path = tmp_path / "results.json"
    options = ["--cells", "40/20/3", "--num-groups", "4", "--repeats", "1", "--json", str(path)]
    assert (
        main(["bench", "precision", str(artifact), "--checkpoint", str(tiny_checkpoint), *options])
        == 0
    )
    results: dict[str, Any] = json.loads(path.read_text())
    rows = {row["contender"]: row for row in results["contenders"]}
    ours = {
        f"{runtime} {precision}"
        for runtime in ("onnxruntime", "openvino")
        for precision in ("fp32", "int8")
    }
    assert rows.keys() | results["skipped"].keys() == ours | {"transformers bf16", "stock graph"}
    for name, row in rows.items():
        assert row["seconds"].keys() == {"40/20/3", "real", "singly", "again"}
        for figure in row["seconds"].values():
            assert figure["seconds"] > 0
            assert figure["ratio"] > 0
            assert figure["cpu_ratio"] > 0
        assert (row["fidelity"] is None) == (name == "stock graph")
    reference = rows["onnxruntime fp32"]
    assert all(figure["ratio"] == 1 for figure in reference["seconds"].values())
    assert reference["fidelity"]["max_error"] == 0
    assert reference["fidelity"]["kendall_tau"] == 1
    assert 0 < rows["onnxruntime int8"]["fidelity"]["max_error"] < 1
    assert 0 < rows["transformers bf16"]["fidelity"]["max_error"] < 0.5
    assert rows["transformers bf16"]["fidelity"]["num_groups"] == 4
    printed = capsys.readouterr().out
    assert "not computed on --device cpu" in results["skipped"]["openvino int8"]
    for name, reason in results["skipped"].items():
        assert f"skipped: {name}: {reason}" in printed
    assert results["machine"]["cores"] > 0
    assert results["command"] == (
        f"kwise bench precision artifact --checkpoint {tiny_checkpoint.name} --cells 40/20/3 "
        "--num-groups 4 --repeats 1 --json results.json"
    )


def test_without_a_checkpoint_the_baselines_are_skipped(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cells", "20/10/2", "--num-groups", "2", "--repeats", "1"]
    assert main(["bench", "precision", str(tiny_artifact), *options]) == 0
    assert "skipped: transformers bf16: needs --checkpoint" in capsys.readouterr().out
