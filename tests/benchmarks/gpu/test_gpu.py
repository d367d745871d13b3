"""The benchmark of GPUs, run on a CPU: its arithmetic, its steps, and what a cut run leaves."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from kwise.benchmarks.gpu import rewards
from kwise.benchmarks.gpu.rewards import parity_of
from kwise.benchmarks.gpu.run import steps_of
from kwise.benchmarks.gpu.shapes import Shape, fill, write_shape
from kwise.benchmarks.gpu.steps import STEPS
from kwise.benchmarks.gpu.times import pass_figures, pass_line, throughput_of
from kwise.benchmarks.options import Cell, GpuBenchConfig
from kwise.cli import main
from kwise.engine.model.runtime.cuda import CUDA_ENVIRONMENT

CELL = Cell(P=64, R=32, K=4)
SMALL: dict[str, Any] = {
    "device": "cpu",
    "cells": "20/10/3",
    "rows": (64,),
    "repeats": 1,
    "groups": 2,
}


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


def test_the_slower_of_host_and_graph_decides_the_rate() -> None:
    figures = pass_figures(10, 300, host_s=0.002, graph_s=0.001, factor=16)
    assert (figures["model_ms"], figures["rewards_per_s"]) == (16.0, 10 / 0.016)
    assert "300 rows take 1.00 ms in 1/16 of the layers, times 16 16.0 ms" in pass_line(figures)
    figures = pass_figures(10, 300, host_s=0.002, graph_s=0.001, factor=1)
    assert figures["rewards_per_s"] == 5000
    assert pass_line(figures) == "300 rows take 1.00 ms, and 2.00 ms to prepare; 5,000.0 rewards/s"


def test_throughput_counts_tokens_as_clients_send_them() -> None:
    row = throughput_of(CELL, 10, [2.0, 2.0, 4.0])
    assert (row["tokens_per_s"], row["groups_per_s"]) == (10 * 4 * 96 / 2, 5.0)


def test_all_steps_together_take_less_than_15_minutes() -> None:
    assert sum(step.limit_s for name, step in STEPS.items() if name != "shapes") < 15 * 60


def test_shapes_have_their_weights_before_anything_is_measured() -> None:
    both = GpuBenchConfig(artifact="a", shapes="s")
    assert steps_of(both) == list(STEPS)
    assert steps_of(replace(both, shapes="")) == list(STEPS)[2:]
    assert steps_of(replace(both, steps=("vllm", "agree"))) == [
        "shapes",
        "weights",
        "agree",
        "vllm",
    ]
    assert steps_of(replace(both, steps=("shapes",))) == ["shapes"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shape of two of 32 layers."""
    path = tmp_path_factory.mktemp("shapes")
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    write_shape(Shape(config=sizes | heads, num_layers=2, model_layers=32), path / "tiny")
    return path


def ran(step: str, config: GpuBenchConfig, filled: Path) -> list[dict[str, Any]]:
    """Run a step in this process, and return what it told."""
    told: list[dict[str, Any]] = []
    STEPS[step].run(config, filled, lambda line, **figures: told.append({"line": line, **figures}))
    return told


def test_a_shape_travels_without_weights_and_has_the_same_ones_in_each_precision(
    shapes: Path, tmp_path: Path
) -> None:
    assert not list(shapes.glob("tiny/*.data"))
    fill(shapes / "tiny", tmp_path / "tiny")
    weights = {
        name: {
            tensor.name: to_array(tensor, str(tmp_path / "tiny"))
            for tensor in onnx.load(
                tmp_path / "tiny" / name, load_external_data=False
            ).graph.initializer
        }
        for name in ("model.onnx", "model.fp16.onnx", "model.fp16.cuda.onnx")
    }
    name = "model.layers.1.mlp.up_proj.weight.transposed"
    fp32, fp16 = weights["model.onnx"][name], weights["model.fp16.onnx"][f"{name}.float16"]
    assert fp32.std() == pytest.approx(64**-0.5, rel=0.1)
    np.testing.assert_array_equal(fp16, fp32.astype(np.float16))
    np.testing.assert_array_equal(weights["model.fp16.cuda.onnx"][f"{name}.float16"], fp16)


def test_a_shape_is_measured_and_its_time_is_that_of_the_whole_model(
    shapes: Path, tmp_path: Path
) -> None:
    config = GpuBenchConfig(shapes=str(shapes), models=("tiny",), **SMALL)
    assert ran("shapes", config, tmp_path) == []  # it is there
    assert ran("agree", config, tmp_path) == []  # it has no weights yet
    ran("weights", config, tmp_path)
    agreed = {told["precision"]: told for told in ran("agree", config, tmp_path)}
    assert (agreed["fp32"]["max_difference"], agreed["fp32"]["rewards"]) == (0.0, 14)
    measured = [told for told in ran("passes", config, tmp_path) if told["precision"] == "fp32"]
    assert [(told["factor"], told["sequences"], told["rows"]) for told in measured] == [(16, 3, 50)]
    assert measured[0]["model_ms"] == pytest.approx(16 * measured[0]["graph_ms"])
    (compared,) = ran("transformers", config, tmp_path)
    assert compared["ratio"] > 0 and compared["sequences"] == 3
    assert ran("engine", config, tmp_path) == []


def test_an_artifact_is_measured_on_real_conversations(
    tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(CUDA_ENVIRONMENT)
    monkeypatch.setattr(rewards, "CUDA_ENVIRONMENT", environment)
    config = GpuBenchConfig(artifact=str(tiny_artifact), checkpoint=str(tiny_checkpoint), **SMALL)
    agreed = {told["reference"]: told for told in ran("agree", config, tmp_path)}
    assert agreed["fp32 on the CPU"]["rewards"] == 40
    assert agreed["the golden rewards"]["max_difference"] < 1e-4
    (told,) = ran("change", config, tmp_path)
    assert 0 <= told["alone_to_crowd"] < told["allowed"]
    assert "CUDA graph" not in told["line"], "a CPU replays none"
    assert environment
    assert len(ran("change-default", config, tmp_path)) == 1
    assert not environment, "kwise must not set the variables"
    (told,) = ran("engine", config, tmp_path)
    assert (told["cell"], told["groups"], told["groups_per_s"] > 0) == ("20/10/3", 2, True)
    assert "skipped" in ran("vllm", config, tmp_path)[0]


def test_figures_are_saved_as_they_come_and_a_cut_step_leaves_the_others(
    tiny_artifact: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(STEPS, "agree", replace(STEPS["agree"], limit_s=0.0))
    path = tmp_path / "results.json"
    options = ["--device", "cpu", "--cells", "20/10/3", "--rows", "64", "--repeats", "1"]
    steps = ["--steps", "passes", "agree", "--json", str(path)]
    assert main(["bench", "gpu", "--artifact", str(tiny_artifact), *options, *steps]) == 0
    results = json.loads(path.read_text())["steps"]
    assert results["agree"]["failed"] == "time limit"
    (figures,) = results["passes"]["figures"]
    assert figures["cell"] == "20/10/3" and results["passes"]["seconds"] > 0
    assert f"{figures['rows']} rows take" in capfd.readouterr().out


def test_a_run_that_is_terminated_ends_its_step_and_leaves_no_files(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    command = ["-m", "kwise", "bench", "gpu", "--artifact", str(tiny_artifact), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"== agree")
        assert any(tmp_path.iterdir())
        process.terminate()
        process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(tmp_path.iterdir())


def test_a_missing_gpu_is_reported_in_one_line(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "gpu", "--artifact", str(tiny_artifact)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kwise bench: no precision runs on --device cuda:0: ConfigError: ")
    assert "--device cuda needs onnxruntime-gpu" in line


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "give --artifact, --shapes, or both"),
        (["--artifact", ".", "--steps", "pass"], "--steps: 'pass' is not one of shapes, weights"),
    ],
)
def test_wrong_options_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    assert main(["bench", "gpu", *options]) == 2
    assert problem in capsys.readouterr().err
