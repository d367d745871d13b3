"""The record of a run: what a resumed run must have in common with it, and what may change."""

from collections.abc import Sequence
from typing import Any

from kwise.errors import ConfigError
from kwise.train.model.reward_model import RewardModel
from kwise.train.options.config import Precision, TrainConfig
from kwise.train.rankings.hash import rankings_sha256
from kwise.train.rankings.schema import Ranking
from kwise.train.report.provenance import tokenizer_sha256, versions
from kwise.train.report.training_report import plain_config

# Options that do not change the result: where and how often the run writes, how much memory it
# uses.
_FREE_TO_CHANGE = {
    "recipe",
    "output",
    "template_date",  # the date that is printed is compared
    "save_every",
    "log_every",
    "report_to",
    "gradient_checkpointing",
    "export_check",
    "resume",
    "overwrite",
}

# Options that name what is hashed, by the key of the hash in run.json. It may have been moved.
_HASHED = {
    "data": "rankings_sha256",
    "validation": "validation_sha256",
    "model": "model_sha256",
    "chat_template": "template_sha256",
}

# The dependencies of a run that are not options, by their key in run.json. A difference of an
# earlier entry explains those of later ones.
_DEPENDENCIES = {
    "rankings_sha256": "the rankings are not those",
    "validation_sha256": "the rankings of --validation are not those",
    "model_sha256": "the model {model} is not the one",
    "template_sha256": "the chat template is not the one",
    "tokenizer_sha256": "the tokenizer is not the one",
}


def describe_run(
    config: TrainConfig,
    rankings: Sequence[Ranking],
    validation_rankings: Sequence[Ranking] | None,
    reward_model: RewardModel,
    *,
    model_sha256: str,
    precision: Precision,
    sharded: bool,
) -> dict[str, Any]:
    """Return the first content of run.json; its keys are fields of `TrainingReport`.

    Args:
        rankings: those of `config.data`.
        validation_rankings: those of `config.validation`; None without that file.
        model_sha256: see `provenance.model_sha256`.
        precision: the precision that was chosen for the device.
        sharded: whether each process has only a part of the weights.
    """
    return {
        "config": plain_config(config),
        "rankings_sha256": rankings_sha256(rankings),
        "validation_sha256": None
        if validation_rankings is None
        else rankings_sha256(validation_rankings),
        "model_sha256": model_sha256,
        "tokenizer_sha256": tokenizer_sha256(reward_model.tokenizer),
        "template": reward_model.template.origin,
        "template_sha256": reward_model.template.sha256,
        "template_date": reward_model.template.date,
        "layout": reward_model.layout.name,
        "precision": precision.value,
        "sharded": sharded,
        "versions": versions(),
    }


def check_same_run(run: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Raise ConfigError if `run` is not the recorded run.

    A record of an earlier version of kwise may lack entries, which are not compared.

    Returns:
        A note for each library that has another version than when the run began.
    """
    began_on, now_on = recorded.get("template_date"), run["template_date"]
    if began_on and now_on and began_on != now_on:
        raise ConfigError(
            f"--resume: the chat template printed {began_on} when the run began and would print "
            f"{now_on} now; add --template-date {began_on}"
        )
    for key, problem in _DEPENDENCIES.items():
        if run[key] != recorded.get(key, run[key]):
            problem = problem.format(model=run["config"]["model"])
            raise ConfigError(f"--resume: {problem} with which the run began")
    if run["sharded"] != recorded.get("sharded", False):
        began, now = ("without FSDP", "with it") if run["sharded"] else ("with FSDP", "without it")
        raise ConfigError(
            f"--resume: the run began {began} and is launched {now}, but its weights are in other "
            "files"
        )
    for key in ("layout", "precision"):
        if run[key] != recorded.get(key, run[key]):
            raise ConfigError(
                f"--resume: the {key} was {recorded[key]} when the run began and is {run[key]} now"
            )
    for name, value in run["config"].items():
        if name in _FREE_TO_CHANGE or _HASHED.get(name) in recorded:
            continue
        began = recorded["config"].get(name, value)
        if value != began:
            flag = "--" + name.replace("_", "-")
            was, now = ("not given" if given is None else given for given in (began, value))
            raise ConfigError(f"--resume: {flag} was {was} when the run began and is {now} now")
    return [
        f"{package} was {began} when the run began and is {run['versions'].get(package)} now: the "
        "weights may differ from those of an uninterrupted run"
        for package, began in recorded.get("versions", {}).items()
        if began != run["versions"].get(package)
    ]
