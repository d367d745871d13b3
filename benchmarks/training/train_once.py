"""One training run by kwise or TRL, for `kwise bench train`, in a process of its own.

`python -m kwise.benchmarks.training.train_once RUN.json` calls the public interfaces:
`kwise.train.run.training.train` with a file of rankings, and TRL's `RewardTrainer` with the C(K,2)
pairs of conversations that a ranking of K becomes.

kwise's steps, of two rankings each, are timed without the first, which allocates memory and the
optimizer's state. TRL has one timed step; it consists of so many passes that its start is less than
1 % of it. The peak of memory is that of later steps in both: weights, optimizer state, gradients of
earlier passes of the step, and what a pass stores for its backward pass.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


class StepTimes:
    """Receives the progress lines of `kwise train`, one per step, and times the steps.

    Between steps it measures the rate of a matmul, which belongs to no step.
    """

    def __init__(self, peak: Callable[[], float]) -> None:
        self._peak = peak
        self._seconds: list[float] = []
        self._peaks: list[float] = []
        self._started_s = 0.0

    def __call__(self, line: str) -> None:
        """End a step at the line that reports it, and begin the next."""
        if line.startswith("step "):
            if self._peaks:
                self._seconds.append(time.perf_counter() - self._started_s)
            self._peaks.append(self._peak())
            self._started_s = time.perf_counter()

    def mean_step_s(self) -> float:
        """Return the mean time of the steps after the first; there must be at least one."""
        return statistics.mean(self._seconds)

    def share_of_peak(self, operations: float) -> float:
        """Return the rate of a step of `operations` relative to the matmul, the median over steps.

        The rate of the matmul is the mean of those before and after the step.
        """
        around = [sum(pair) / 2 for pair in pairwise(self._peaks)]
        return statistics.median(
            operations / s / peak for s, peak in zip(self._seconds, around, strict=True)
        )


def train_with_kwise(
    checkpoint: str, data: str, steps: int, checkpointing: str, precision: str, operations: float
) -> dict[str, Any]:
    """Return {"seconds": per ranking, "loss": of the first step, "share_of_peak": see StepTimes}.

    Each step has the ranking of `data` twice. There are `steps` timed steps after the first.

    Args:
        operations: those of a ranking.
    """
    from kwise.benchmarks.training.operations import TorchPeak
    from kwise.train.options.config import Checkpointing, Precision, TrainConfig
    from kwise.train.run.training import train

    with TemporaryDirectory() as directory:
        twice = Path(directory) / "twice.jsonl"
        twice.write_text(2 * Path(data).read_text(encoding="utf-8"), encoding="utf-8")
        config = TrainConfig(
            data=str(twice),
            model=checkpoint,
            output=Path(directory) / "checkpoint",
            epochs=1 + steps,
            rankings_per_step=2,
            validation_fraction=0,
            save_every=0,
            log_every=1,
            precision=Precision(precision),
            gradient_checkpointing=Checkpointing(checkpointing),
        )
        step_times = StepTimes(TorchPeak())
        report = train(config, step_times)
    return {
        "seconds": step_times.mean_step_s() / 2,
        "loss": report.losses[0].loss,
        "share_of_peak": step_times.share_of_peak(2 * operations),
    }


def train_with_trl(checkpoint: str, data: str, pairs_per_pass: int) -> dict[str, Any]:
    """Return the same figures for TRL, for one step of all C(K,2) pairs.

    Two passes of a second step follow, untimed, for the peak of memory.
    """
    from datasets import Dataset  # pyright: ignore[reportMissingImports] - an extra
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer  # pyright: ignore[reportMissingImports]

    ranking = json.loads(Path(data).read_text(encoding="utf-8"))
    ranked = sorted(ranking["responses"], key=lambda response: int(response["rank"]))
    conversations = [
        [*ranking["prompt"], {"role": "assistant", "content": response["text"]}]
        for response in ranked
    ]
    pairs = [
        {"chosen": better, "rejected": worse} for better, worse in combinations(conversations, 2)
    ]
    with TemporaryDirectory() as directory:
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1),
            args=RewardConfig(
                output_dir=directory,
                num_train_epochs=1,
                per_device_train_batch_size=pairs_per_pass,
                gradient_accumulation_steps=len(pairs) // pairs_per_pass,
                max_length=None,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                optim="adamw_torch_fused",
                save_strategy="no",
                report_to="none",
                logging_steps=1,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(checkpoint),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        for _ in range(2):
            trainer.training_step(trainer.model_wrapped, next(iter(trainer.get_train_dataloader())))
        trainer.save_model(directory)  # because kwise's peak of memory includes saving too
    return {
        "seconds": seconds,
        "loss": next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
    }


if __name__ == "__main__":
    run = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    train_with: dict[str, Callable[..., dict[str, Any]]] = {
        "kwise": train_with_kwise,
        "trl": train_with_trl,
    }
    figures = train_with[run["trainer"]](**run["options"])
    Path(run["result"]).write_text(json.dumps(figures), encoding="utf-8")
