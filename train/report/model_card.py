"""The README.md of a checkpoint: its training report for people, with front matter for hubs.

The card names the data by hash and never quotes it, because the card travels with the weights and
the texts may not. It states no licence, because only the user can choose one.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kwise.train.checkpoint.pooling import HEADER_KEY
from kwise.train.options.objectives import objective_from_plain, objective_of, reward_meaning
from kwise.train.report.evaluation import Evaluation
from kwise.train.report.members import MembersEvaluation
from kwise.train.report.training_report import TrainingReport

CARD_NAME = "README.md"
LOADING = "`AutoModelForSequenceClassification.from_pretrained` loads it."
NO_LICENCE = (
    "No licence is stated here: it depends on the licences of the base model and of the data, and "
    "on your choice."
)
_MAX_ROWS = 20  # per table; the report has all rows
T = TypeVar("T")


def model_card(report: TrainingReport) -> ModelCard:
    """Return the card of the checkpoint that `report` describes."""
    objective = objective_from_plain(report.config)
    model = f"`{report.config['model']}`"
    if layers := report.config.get("layers"):
        model = f"The first {layers} layer{'s' if layers > 1 else ''} of {model}"
    sections = [
        "# Reward model",
        f"{model} with a linear layer of {_outputs(report)} kwise trained it on rankings of K "
        f"responses to a prompt. {reward_meaning(objective)}",
        LOADING,
        _reading(report),
        NO_LICENCE,
        "## Data",
        _table(("what", "value"), _data_rows(report)),
        "## Validation",
        _validation(report),
        "## Training",
        f"The objective is `{objective.objective.value}` ({objective_of(objective).source}). "
        "Its value on the training data:",
        _table(
            ("step", "loss"),
            [(str(loss.step), f"{loss.loss:.4f}") for loss in _thinned(report.losses)],
        ),
        "Options:",
        _table(
            ("option", "value"), [(f"`{name}`", f"`{value}`") for name, value in _options(report)]
        ),
        "## Made with",
        _table(
            ("what", "version"),
            [*report.versions.items(), ("git revision", report.git_revision or "none")],
        ),
    ]
    return card_of(sections, _eval_results(report))


def card_of(sections: Sequence[str], eval_results: list[EvalResult] | None = None) -> ModelCard:
    """Return a card of these sections, without the empty ones, with front matter for hubs."""
    metadata = ModelCardData(
        model_name="reward model",
        pipeline_tag="text-classification",
        library_name="transformers",
        tags=["reward-model", "rlhf", "kwise"],
        eval_results=eval_results,
    )
    return ModelCard(
        f"---\n{metadata.to_yaml()}\n---\n\n"
        + "\n\n".join(section for section in sections if section)
        + "\n"
    )


def _outputs(report: TrainingReport) -> str:
    """Return the number of outputs, and what they are."""
    heads = int(report.config["heads"])
    if heads == 1:
        return (
            "one output in place of its LM head. It gives one number, the reward, to a "
            "conversation."
        )
    return (
        f"{heads} outputs in place of its LM head. They are the members of an ensemble: output i "
        "minus the i-th of `kwise_member_means` in config.json is the reward of member i. The "
        "reward is their mean; their standard deviation says how far they disagree."
    )


def _reading(report: TrainingReport) -> str:
    """Return where the reward is read, if that is not the last token."""
    if report.response_header is None:
        return ""
    return (
        "**The reward is the mean of the head's outputs over the response's tokens**, those after "
        f"the last token ids {list(report.response_header)} (`{HEADER_KEY}` in config.json). "
        "kwise reads it so. transformers' own `forward` reads the last token, which gives other "
        "rewards."
    )


def _options(report: TrainingReport) -> list[tuple[str, Any]]:
    """Return the options that influence the result, by name."""
    return [
        (name, value)
        for name, value in sorted(report.config.items())
        if name not in ("data", "validation", "output", "resume", "overwrite")
    ]


def _data_rows(report: TrainingReport) -> list[tuple[str, str]]:
    validation = [
        ("validation file", f"`{report.validation}`"),
        ("sha256 of the validation rankings", f"`{report.validation_sha256}`"),
    ]
    sizes = ", ".join(f"{count} of K = {size}" for size, count in report.rankings_by_size.items())
    return [
        ("file", f"`{report.data}`"),
        ("sha256 of the rankings", f"`{report.rankings_sha256}`"),
        *(validation if report.validation else ()),
        ("chat template", _template(report)),
        ("sha256 of the model that training started from", f"`{report.model_sha256}`"),
        ("rankings", sizes),
        ("trained on", f"{report.num_training} rankings, {report.num_training_pairs} pairs"),
        ("validated on" if report.validation else "held out", f"{report.num_validation} rankings"),
        ("skipped, longer than the token limit", str(report.num_skipped)),
        ("weights", f"{report.num_trained:,} trained out of {report.num_parameters:,}"),
        ("layout", _layout(report)),
        (
            "steps",
            f"{report.num_steps} in {report.precision}, {_processes(report)}, "
            f"{report.training_s:.0f} s",
        ),
    ]


def _template(report: TrainingReport) -> str:
    date = f", which prints the date {report.template_date}" if report.template_date else ""
    return f"{report.template}{date}; sha256 `{report.template_sha256}`"


def _layout(report: TrainingReport) -> str:
    if report.layout_reason is None:
        return report.layout
    return f"{report.layout}, because {report.layout_reason}"


def _processes(report: TrainingReport) -> str:
    if report.num_processes == 1:
        return "1 process"
    return f"{report.num_processes} processes" + (" with sharded weights" if report.sharded else "")


def _validation(report: TrainingReport) -> str:
    if report.before is None or report.after is None:
        return "No rankings were held out."
    before = {part.name: part.accuracy for part in report.before.slices}
    rows = [
        (
            "loss of pairs",
            str(report.after.num_pairs),
            f"{report.before.loss:.4f}",
            f"{report.after.loss:.4f}",
        ),
        (
            "pairwise accuracy",
            str(report.after.num_pairs),
            f"{report.before.accuracy:.1%}",
            f"{report.after.accuracy:.1%}",
        ),
    ]
    rows += [
        (
            f"accuracy, {part.name}",
            str(part.num_pairs),
            f"{before[part.name]:.1%}",
            f"{part.accuracy:.1%}",
        )
        for part in report.after.slices
    ]
    rows += _member_rows(report.before, report.after)
    text = _table(("", "pairs", "before", "after"), rows)
    if report.evaluations:
        during = [
            (str(e.step), f"{e.loss:.4f}", f"{e.accuracy:.1%}")
            for e in _thinned(report.evaluations)
        ]
        table = _table(("step", "loss of pairs", "pairwise accuracy"), during)
        text += f"\n\nDuring training, in the precision of training:\n\n{table}"
    if report.best_step is not None:
        text += (
            f"\n\nThe weights are those after step {report.best_step}, "
            "which have the lowest validation loss."
        )
    return text


def _member_rows(before: Evaluation, after: Evaluation) -> list[tuple[str, str, str, str]]:
    """Return the rows about the members of an ensemble."""
    if before.members is None or after.members is None:
        return []

    def row(name: str, show: Callable[[MembersEvaluation], str]) -> tuple[str, str, str, str]:
        assert before.members is not None and after.members is not None
        return name, str(after.num_pairs), show(before.members), show(after.members)

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    return [
        row(
            "pairwise accuracy of each head",
            lambda members: ", ".join(f"{share:.1%}" for share in members.accuracies),
        ),
        row("AUROC of wrong pairs by the heads' std", lambda m: number(m.auroc_of_std)),
        row("AUROC of wrong pairs by a small margin", lambda m: number(m.auroc_of_margin)),
        row("AUROC of wrong pairs by a small margin / std", lambda m: number(m.auroc_of_ratio)),
    ]


def _eval_results(report: TrainingReport) -> list[EvalResult] | None:
    if report.after is None:
        return None
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type="rankings",
            dataset_name=report.validation or report.data,
            metric_type="accuracy",
            metric_name="pairwise accuracy on held-out prompts",
            metric_value=round(report.after.accuracy, 4),
        )
    ]


def _thinned(logged: Sequence[T]) -> list[T]:
    """Return at most `_MAX_ROWS` evenly spaced items and the last one."""
    stride = -(-len(logged) // _MAX_ROWS) or 1
    return [
        one for index, one in enumerate(logged) if index % stride == 0 or index == len(logged) - 1
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines)
