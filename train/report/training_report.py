"""The report of a training run: training_report.json for machines, a few lines for people."""

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
from kwise.types import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedLoss:
    """A training loss: the mean over the steps since the previous entry."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvaluation:
    """An evaluation on the validation split after `step`, in the precision of training."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """One training run.

    Attributes:
        data: the name of the data file, without its path.
        validation: the name of the file of --validation, without its path; None without one.
        rankings_sha256: hash of the rankings as they were read, see rankings/hash.py; not of the
            file's bytes.
        validation_sha256: the same of the file of --validation; None without one.
        model_sha256: hash of the config and the weights that training started from.
        tokenizer_sha256: hash of the tokenizer.
        template: where the chat template comes from.
        template_sha256: hash of the chat template.
        template_date: the date that the chat template prints; None if it prints none.
        config: the options, in JSON's types.
        num_skipped: rankings of both files that were left out because a conversation is over the
            token limit.
        rankings_by_size: the number of rankings with K responses, by K, for training and
            validation.
        num_trained: how many of the `num_parameters` were not frozen.
        sharded: whether each process had only a part of the weights.
        layout: "trie", "padded" or "separate".
        layout_reason: why the model could not be trained over the trie; None if it was.
        response_header: with mean pooling, the token ids after which a response begins; else None.
        evaluations: those during training, in its precision.
        best_step: the step whose weights early stopping chose; None without early stopping.
        before, after: the validation before and after training, in float32; None without
            rankings for validation.
        training_s: seconds of training in this process; of a resumed run, only since it was
            resumed.
        files: the files of the checkpoint, without this report.
    """

    data: str
    validation: str | None
    rankings_sha256: str
    validation_sha256: str | None
    model_sha256: str
    tokenizer_sha256: str
    template: str
    template_sha256: str
    template_date: str | None
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
    response_header: TokenIds | None
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
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def text(self) -> str:
        """Return the report in a few lines."""
        lines = [
            f"trained on {self.num_training} rankings ({self.num_training_pairs} pairs), "
            f"{self.num_steps} steps in {self.precision}, {self.training_s:.0f} s of "
            f"{self.total_s:.0f} s"
        ]
        if self.best_step is not None:
            lines.append(
                f"the weights are those after step {self.best_step}, which have the lowest "
                "validation loss"
            )
        if self.num_skipped:
            lines.append(
                f"skipped {self.num_skipped} rankings with a conversation over the token limit"
            )
        if self.before and self.after:
            lines += [
                f"validation on {self.after.num_rankings} rankings ({self.after.num_pairs} pairs):",
                "            loss    pairwise accuracy",
                *(
                    f"  {name:<8}{e.loss:6.3f}   {e.accuracy:6.1%}"
                    for name, e in self._evaluations()
                ),
            ]
            if self.after.members is not None:
                lines.append(str(self.after.members))
        return "\n".join(lines)

    def _evaluations(self) -> list[tuple[str, Evaluation]]:
        return [
            (name, e)
            for name, e in (("before", self.before), ("after", self.after))
            if e is not None
        ]


def read_report(path: Path) -> dict[str, Any]:
    """Return the JSON object that `TrainingReport.write` wrote; empty if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def rankings_by_size(rankings: Sequence[Ranking]) -> dict[int, int]:
    """Return the number of rankings with K responses, by K."""
    return dict(sorted(Counter(len(ranking.responses) for ranking in rankings).items()))


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """Return `config` in JSON's types, with the names of the data files but not their paths.

    `validation_fraction` is the one that holds, also if the option was not given.
    """
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    plain = {
        name: value.value
        if isinstance(value, Enum)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in values.items()
    }
    return plain | {
        "data": Path(config.data).name,
        "validation": Path(config.validation).name if config.validation else None,
        "validation_fraction": config.held_out_fraction,
    }
