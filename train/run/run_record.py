"""Which run this is: what a resumed one must have in common with the one that it resumes, and what it may change."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from kwise.errors import ConfigError
from kwise.train.options.config import TrainConfig
from kwise.train.rankings.schema import Ranking
from kwise.train.report.training_report import plain_config

# Where and how often it writes, and how much memory it takes, not what it computes.
_FREE_TO_CHANGE = {
    "recipe",
    "output",
    "save_every",
    "log_every",
    "report_to",
    "gradient_checkpointing",
    "resume",
    "overwrite",
}


def describe_run(
    config: TrainConfig, rankings: Sequence[Ranking], *, sharded: bool
) -> dict[str, Any]:
    """What steps/run.json holds from the beginning."""
    return {
        "config": plain_config(config),
        "rankings_sha256": rankings_sha256(rankings),
        "sharded": sharded,
    }


def rankings_sha256(rankings: Sequence[Ranking]) -> str:
    """Of what was read, in its order: a pipe is there only once, and a file may be another when the run ends."""
    digest = hashlib.sha256()
    for ranking in rankings:
        prompt = [[message.role, message.content] for message in ranking.prompt]
        digest.update(
            json.dumps([prompt, ranking.responses, ranking.ranks, ranking.scores]).encode() + b"\n"
        )
    return digest.hexdigest()


def check_same_run(run: dict[str, Any], noted: dict[str, Any]) -> None:
    """Raises ConfigError where `run` is not the one that was noted."""
    if run["rankings_sha256"] != noted["rankings_sha256"]:
        raise ConfigError("--resume: the rankings are not those that the run began with")
    if run["sharded"] != noted.get("sharded", False):
        raise ConfigError(
            "--resume: launched with FSDP or without, as the run was not: its weights lie in other files"
        )
    for name, value in run["config"].items():
        if name not in _FREE_TO_CHANGE and value != noted["config"].get(name):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} was {noted['config'].get(name)} in the run to resume and is {value} now"
            )
