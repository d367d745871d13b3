"""The speed and memory of training on rankings, relative to TRL's `RewardTrainer`.

Physics: TRL trains on pairs. A ranking of K = 9 has 36 pairs, which are 72 sequences with the
prompt 72 times; kwise computes the prompt once and each of the nine responses once. Both start from
the same weights with the same ranking and precision, and the loss of the first step must agree,
which shows that the work is the same. Each run is a process of its own; the runs take turns. The
share of the peak is that of the operations which no trainer can avoid (operations.py), relative to
the rate of one large fp32 matmul between the steps.
"""

import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kwise.benchmarks.memory import PRINT_PEAK_OF
from kwise.benchmarks.options import Cell, TrainBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.training.operations import cost_of_training
from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install
from kwise.train.model.precision import has_fast_bf16

if TYPE_CHECKING:
    from kwise.train.model.reward_model import RewardModel

# Sums in another order differ by rounding; the mean over pairs is of the order of 1.
_MAX_LOSS_DIFFERENCE = 1e-3
_MAX_LOSS_DIFFERENCE_BF16 = 2e-2


def run(config: TrainBenchConfig) -> None:
    """Print a table and write the figures to `config.json`.

    Raises:
        ConfigError: TRL is not installed, or the text is too short.
        RuntimeError: a run failed, or the losses differ.
    """
    if find_spec("trl") is None:
        raise ConfigError(f"kwise bench train compares with TRL: {how_to_install('bench')}")
    from kwise.train.model.reward_model import load_reward_model

    results: dict[str, Any] = {}
    with TemporaryDirectory() as directory:
        checkpoint, data = Path(directory) / "checkpoint", Path(directory) / "ranking.jsonl"
        reward_model = load_reward_model(config.model)
        reward_model.save(checkpoint)
        print(
            f"{'P/R/K':<12}{'trainer':<26}{'s/ranking':>12}{'of peak':>9}{'memory':>10}{'loss':>9}"
            f"{'ratio':>13}"
        )
        for cell in config.parsed_cells():
            ranking = _ranking(reward_model.tokenizer, config.text.read_text("utf-8"), cell)
            data.write_text(json.dumps(ranking) + "\n", "utf-8")
            operations = _operations(reward_model, data)
            results[str(cell)] = _compare(config, cell, checkpoint, data, operations)
    if config.json:
        write_results(config.json, "train", config, results)


def _operations(reward_model: "RewardModel", data: Path) -> int:
    """Return the operations of forward and backward of the ranking in `data`."""
    from kwise.train.data.read import read_rankings
    from kwise.train.model.tokenizer import token_ids

    (ranking,) = read_rankings(data)
    sequences = [
        np.array(token_ids(reward_model.tokenizer, conversation), np.int64)
        for conversation in ranking.conversations()
    ]
    return cost_of_training(reward_model.model).of(sequences)


def _compare(
    config: TrainBenchConfig, cell: Cell, checkpoint: Path, data: Path, operations: int
) -> dict[str, Any]:
    """Return the figures of each trainer, medians over the repeats."""
    paths = {"checkpoint": str(checkpoint), "data": str(data)}
    options = paths | {"steps": config.steps, "operations": operations}
    ways = {
        "kwise": ("none", "fp32"),
        "kwise, selective": ("selective", "fp32"),
        "kwise, full checkpointing": ("full", "fp32"),
    }
    if has_fast_bf16(torch.device("cpu")):
        ways["kwise, bf16"] = ("none", "bf16")
    trainers: dict[str, tuple[str, dict[str, Any]]] = {
        name: ("kwise", options | {"checkpointing": checkpointing, "precision": precision})
        for name, (checkpointing, precision) in ways.items()
    }
    for size in config.pairs_per_pass:
        trainers[f"TRL, pairs per pass: {size}"] = ("trl", paths | {"pairs_per_pass": size})
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    for _ in range(config.repeats):
        for name, (trainer, options) in trainers.items():
            runs[name].append(_run_process(trainer, options))
    results = {
        name: {
            key: statistics.median(run[key] for run in runs_of_trainer)
            for key in runs_of_trainer[0]
        }
        for name, runs_of_trainer in runs.items()
    }
    for name, figures in results.items():
        ratio = figures["seconds"] / results["kwise"]["seconds"]
        share = figures.get("share_of_peak")
        print(
            f"{cell!s:<12}{name:<26}{figures['seconds']:>12.2f}"
            f"{'-' if share is None else f'{share:.3f}':>9}"
            f"{figures['peak_bytes'] / 1e9:>7.2f} GB{figures['loss']:>9.4f}{ratio:>12.1f}x"
        )
        allowed = _MAX_LOSS_DIFFERENCE_BF16 if "bf16" in name else _MAX_LOSS_DIFFERENCE
        if abs(figures["loss"] - results["kwise"]["loss"]) > allowed:
            raise RuntimeError(
                f"the first loss of {name} is {figures['loss']}, that of kwise is "
                f"{results['kwise']['loss']}"
            )
    return results


def _run_process(trainer: str, options: dict[str, Any]) -> dict[str, float]:
    """Run `train_once` and return its seconds, loss and peak_bytes."""
    with TemporaryDirectory() as directory:
        task, result = Path(directory) / "run.json", Path(directory) / "result.json"
        task.write_text(
            json.dumps({"trainer": trainer, "options": options, "result": str(result)}),
            encoding="utf-8",
        )
        train_once = [
            sys.executable,
            "-m",
            "kwise.benchmarks.training.train_once",
            str(task),
        ]
        finished = subprocess.run(
            [sys.executable, "-c", PRINT_PEAK_OF, *train_once],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        if finished.returncode:
            raise RuntimeError(f"{trainer} failed:\n{finished.stderr[-2000:]}")
        figures: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
        return figures | {"peak_bytes": int(finished.stdout) * 1024}


def _ranking(tokenizer: Any, text: str, cell: Cell) -> dict[str, Any]:
    """Return a ranking in kwise's schema whose conversations have about P + R tokens.

    A cut inside a word can change the number of tokens by a few.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    empty = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    num_template_tokens = len(tokenizer.apply_chat_template(empty, return_dict=False))
    num_required = cell.P + cell.K * cell.R
    if len(offsets) < num_required:
        raise ConfigError(f"--text has {len(offsets)} tokens; {cell} needs {num_required}")

    def cut(start: int, length: int) -> str:
        return text[offsets[start][0] : offsets[start + length - 1][1]]

    prompt = cut(0, max(cell.P - num_template_tokens, 1))
    responses = [
        {"text": cut(cell.P + index * cell.R, cell.R), "rank": index + 1} for index in range(cell.K)
    ]
    return {"prompt": [{"role": "user", "content": prompt}], "responses": responses}
