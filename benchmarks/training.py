"""`kwise bench train`: rankings a second and peak memory beside TRL's `RewardTrainer`, same model, ranking, precision and machine.

TRL trains on pairs: a ranking of K = 9 is 36 of them, 72 sequences and the prompt 72 times; kwise computes the prompt once and the
nine responses once. Both start from the same weights, and the loss of the first step must be the same: the work is the same.
Each run is a process of its own; the runs take turns.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kwise.benchmarks import machine
from kwise.benchmarks.memory import PEAK_OF
from kwise.benchmarks.workload import Cell, parse_cells
from kwise.errors import ConfigError
from kwise.options import check_bounds, option

# Rounding of two orders of summation; the mean over pairs is of a few units.
_SAME_LOSS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBenchConfig:
    """What is compared. Raises ConfigError, naming the option and its bound."""

    model: str = option(help="a language model or reward model, as of kwise train")
    text: Path = option(
        Path("examples/rankings.jsonl"), "any UTF-8 text, of which prompts and responses are cut"
    )
    cells: str = option(
        "256/128/9,1024/128/9", "tokens of the prompt / of each response / responses"
    )
    steps: int = option(2, "steps of two rankings that are timed in each run of kwise", minimum=1)
    repeats: int = option(1, "runs of each; medians are told", minimum=1)
    pairs_per_pass: tuple[int, ...] = option(
        (1,), "pairs that TRL computes at a time; must divide C(K,2)"
    )
    json: str = option("", "file for all figures, with the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        for cell in self.parsed_cells():
            num_pairs = cell.K * (cell.K - 1) // 2
            if any(size < 1 or num_pairs % size for size in self.pairs_per_pass):
                raise ConfigError(
                    f"--pairs-per-pass is {self.pairs_per_pass}; each must divide {num_pairs}, the pairs of {cell}"
                )

    def parsed_cells(self) -> list[Cell]:
        return parse_cells(self.cells)


def run(config: TrainBenchConfig) -> None:
    """Print a table, and write the figures where --json says. Raises ConfigError where TRL is not installed."""
    if find_spec("trl") is None:
        raise ConfigError("kwise bench train compares with TRL: pip install 'kwise[bench]'")
    from kwise.train.model.reward_model import load_reward_model

    results: dict[str, Any] = {}
    with TemporaryDirectory() as directory:
        checkpoint, data = Path(directory) / "checkpoint", Path(directory) / "ranking.jsonl"
        reward_model = load_reward_model(config.model)
        reward_model.save(checkpoint)
        print(
            f"{'P/R/K':<12}{'trainer':<26}{'s a ranking':>12}{'peak':>10}{'loss':>9}{'times kwise':>13}"
        )
        for cell in config.parsed_cells():
            data.write_text(
                json.dumps(_ranking(reward_model.tokenizer, config.text.read_text("utf-8"), cell))
                + "\n",
                "utf-8",
            )
            results[f"{cell.P}/{cell.R}/{cell.K}"] = _compare(config, cell, checkpoint, data)
    if config.json:
        machine.write(Path(config.json), {"options": machine.plain(asdict(config))} | results)


def _compare(config: TrainBenchConfig, cell: Cell, checkpoint: Path, data: Path) -> dict[str, Any]:
    where = {"checkpoint": str(checkpoint), "data": str(data)}
    trainers: dict[str, tuple[str, dict[str, Any]]] = {
        "kwise": ("kwise", where | {"steps": config.steps, "checkpointing": "none"}),
        "kwise, selective": (
            "kwise",
            where | {"steps": config.steps, "checkpointing": "selective"},
        ),
        "kwise, full checkpointing": (
            "kwise",
            where | {"steps": config.steps, "checkpointing": "full"},
        ),
    }
    for size in config.pairs_per_pass:
        trainers[f"TRL, pairs a pass: {size}"] = ("trl", where | {"pairs_per_pass": size})
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    for _ in range(config.repeats):
        for name, (trainer, options) in trainers.items():
            runs[name].append(_run(trainer, options))
    figures = {
        name: {
            key: statistics.median(run[key] for run in runs_of_one)
            for key in ("seconds", "loss", "peak_bytes")
        }
        for name, runs_of_one in runs.items()
    }
    for name, one in figures.items():
        ratio = one["seconds"] / figures["kwise"]["seconds"]
        print(
            f"{f'{cell.P}/{cell.R}/{cell.K}':<12}{name:<26}{one['seconds']:>12.2f}{one['peak_bytes'] / 1e9:>7.2f} GB"
            f"{one['loss']:>9.4f}{ratio:>12.1f}x"
        )
        if abs(one["loss"] - figures["kwise"]["loss"]) > _SAME_LOSS:
            raise RuntimeError(
                f"{name} has a first loss of {one['loss']} and kwise one of {figures['kwise']['loss']}"
            )
    return figures


def _run(trainer: str, options: dict[str, Any]) -> dict[str, float]:
    """seconds, loss and peak_bytes of one process."""
    with TemporaryDirectory() as directory:
        task, result = Path(directory) / "run.json", Path(directory) / "result.json"
        task.write_text(
            json.dumps({"trainer": trainer, "options": options, "result": str(result)}),
            encoding="utf-8",
        )
        command = [
            sys.executable,
            "-c",
            PEAK_OF,
            sys.executable,
            "-m",
            "kwise.benchmarks.trainers",
            str(task),
        ]
        finished = subprocess.run(
            command,
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
    """A ranking in kwise's schema whose conversations have P + R tokens, give or take a few where a cut splits a word."""
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    frame = len(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        )
    )
    if len(whole) < (wanted := cell.P + cell.K * cell.R):
        raise ConfigError(f"--text has {len(whole)} tokens; {wanted} are wanted")

    def cut(start: int, length: int) -> str:
        return text[whole[start][0] : whole[start + length - 1][1]]

    responses = [
        {"text": cut(cell.P + index * cell.R, cell.R), "rank": index + 1} for index in range(cell.K)
    ]
    return {
        "prompt": [{"role": "user", "content": cut(0, max(cell.P - frame, 1))}],
        "responses": responses,
    }
