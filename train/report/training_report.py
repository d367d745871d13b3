"""What a training run says about itself: training_report.json for machines, a few lines for people."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from kwise.train.options.config import TrainConfig
from kwise.train.rankings.schema import Ranking
from kwise.train.report.evaluation import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedLoss:
    """`loss` is the mean over the steps since the line before, in training mode and precision."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvaluation:
    """Of the validation split, after `step`."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """One run. `before` and `after` are None without a validation split; both are measured in float32.

    `data` is the file's name, for a path may mean nothing elsewhere; `rankings_sha256` is of the rankings as they were read (see
    `run.rankings_sha256`), not of the file's bytes. `evaluations` are those during training, in its precision; `best_step` is
    whose weights these are, where early stopping chose.
    `num_trained` of the `num_parameters` were not frozen; `sharded`: each process had a part of them. `rankings_by_size[K]` is
    how many of all rankings, training and validation, have K responses. `training_s` is the time in this process: of a resumed
    run, only since it was resumed. `files` are the checkpoint's, beside the report.
    """

    data: str
    rankings_sha256: str
    git_revision: str | None
    config: dict[str, Any]
    num_training: int
    num_validation: int
    num_skipped: int
    num_training_pairs: int
    rankings_by_size: dict[int, int]
    num_parameters: int
    num_trained: int
    num_processes: int
    sharded: bool
    num_steps: int
    precision: str
    layout: str
    layout_reason: str | None
    losses: tuple[LoggedLoss, ...]
    evaluations: tuple[LoggedEvaluation, ...]
    best_step: int | None
    before: Evaluation | None
    after: Evaluation | None
    training_s: float
    total_s: float
    versions: dict[str, str]
    files: tuple[str, ...]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def text(self) -> str:
        """The run in a few lines."""
        lines = [
            f"trained on {self.num_training} rankings ({self.num_training_pairs} pairs), {self.num_steps} steps in "
            f"{self.precision}, {self.training_s:.0f} s of {self.total_s:.0f} s"
        ]
        if self.best_step is not None:
            lines.append(
                f"the weights are those after step {self.best_step}, which had the best validation loss"
            )
        if self.num_skipped:
            lines.append(f"skipped {self.num_skipped} rankings with a conversation over the limit")
        if self.before and self.after:
            lines += [
                f"validation on {self.after.num_rankings} rankings ({self.after.num_pairs} pairs):",
                "            loss    pairwise accuracy",
                *(
                    f"  {name:<8}{e.loss:6.3f}   {e.accuracy:6.1%}"
                    for name, e in self._evaluations()
                ),
            ]
        return "\n".join(lines)

    def _evaluations(self) -> list[tuple[str, Evaluation]]:
        return [
            (name, e)
            for name, e in (("before", self.before), ("after", self.after))
            if e is not None
        ]


def rankings_by_size(rankings: Sequence[Ranking]) -> dict[int, int]:
    """How many rankings have K responses, by K."""
    return dict(sorted(Counter(len(ranking.responses) for ranking in rankings).items()))


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """`config` in JSON's types. Of the data only the name: a report may travel where the path means nothing."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    plain = {
        name: value.value
        if isinstance(value, Enum)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in values.items()
    }
    return plain | {"data": Path(config.data).name}
