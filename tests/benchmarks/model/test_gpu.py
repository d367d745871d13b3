"""The benchmark of GPUs, run on a CPU: its arithmetic, and all figures of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kwise.benchmarks.model.gpu import (
    latency_line,
    latency_of,
    parity_of,
    throughput_line,
    throughput_of,
)
from kwise.benchmarks.options import Cell
from kwise.cli import main

CELL = Cell(P=64, R=32, K=4)


def test_parity_is_in_raw_units_and_in_standard_deviations() -> None:
    expected = np.array([0.0, 4.0], np.float32)
    figures = parity_of(np.array([0.5, 4.0], np.float32), expected)
    assert figures == {
        "rewards": 2,
        "max_difference": 0.5,
        "mean_difference": 0.25,
        "max_in_std": 0.25,
        "mean_in_std": 0.125,
    }


def test_a_reward_that_is_nan_is_a_difference() -> None:
    figures = parity_of(np.array([np.nan, 1.0], np.float32), np.zeros(2, np.float32))
    assert np.isnan(figures["max_difference"])


def test_ratios_are_medians_within_a_repeat() -> None:
    """The machine is slow in the second repeat, for all alike."""
    row = latency_of(padded=[1.0, 9.0, 1.0], unpadded=[2.0, 18.0, 3.0], baseline=[4.0, 36.0, 2.0])
    assert (row["seconds"], row["unpadded_ratio"], row["baseline_ratio"], row["runs"]) == (
        1.0,
        2.0,
        4.0,
        3,
    )
    assert latency_of(padded=[1.0], unpadded=[1.0], baseline=[])["baseline_ratio"] is None


def test_throughput_counts_tokens_as_clients_send_them() -> None:
    row = throughput_of(CELL, 10, [2.0, 2.0, 4.0], [])
    assert (row["tokens_per_s"], row["groups_per_s"], row["baseline_ratio"]) == (
        10 * 4 * 96 / 2,
        5.0,
        None,
    )
    assert throughput_of(CELL, 10, [2.0], [5.0])["baseline_ratio"] == 2.5


@pytest.mark.parametrize("baseline", [[], [0.5]])
def test_printed_lines_have_the_figures(baseline: list[float]) -> None:
    latency = {
        "P": 64,
        "R": 32,
        "K": 4,
        **latency_of(padded=[0.25], unpadded=[0.5], baseline=baseline),
    }
    assert latency_line(latency).split()[:4] == ["64", "32", "4", "250.00"]
    assert ("2.00" in latency_line(latency).split()[-2]) == bool(baseline)
    throughput = {"P": 64, "R": 32, "K": 4, "groups": 2, **throughput_of(CELL, 2, [0.5], baseline)}
    assert throughput_line(throughput).startswith(
        "64/32/4: 4.0 groups/s, 1,536 tokens/s with 2 groups queued"
    )
    assert throughput_line(throughput).endswith("transformers") == bool(baseline)


def test_the_same_code_runs_on_a_cpu(
    tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--cells", "20/10/3,40/20/2", "--repeats", "1", "--groups", "3"]
    path = tmp_path / "results.json"
    arguments = [
        "bench",
        "gpu",
        str(tiny_artifact),
        "--checkpoint",
        str(tiny_checkpoint),
        "--json",
        str(path),
        *options,
    ]
    assert main(arguments) == 0
    results: dict[str, Any] = json.loads(path.read_text())
    measured = results["precisions"]["fp32"]
    assert measured["parity"]["fp32 on the CPU"]["rewards"] == 5
    assert measured["parity"]["fp32 on the CPU"]["max_difference"] < 1e-5
    assert measured["parity"]["the golden rewards"]["max_difference"] < 1e-4
    for table in ("latency", "throughput"):
        assert [row["P"] for row in measured[table]] == [20, 40]
        assert all(row["baseline_ratio"] > 0 and row["seconds"] > 0 for row in measured[table])
    printed = capsys.readouterr().out
    assert "3 groups queued" in printed
    assert "difference from fp32 on the CPU: max" in printed


def test_a_missing_gpu_is_reported_in_one_line(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "gpu", str(tiny_artifact)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kwise bench: no GPU to measure: --device cuda needs onnxruntime-gpu")
