"""The record of a run: what a resumed run must have in common with it, and what may change."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from kwise.errors import ConfigError
from kwise.train.options.config import TrainConfig
from kwise.train.rankings.schema import Ranking
from kwise.train.report.training_report import plain_config

# Options that do not change the result: where and how often the run writes, how much memory it
# uses.
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
    """Return the first content of run.json."""
    return {
        "config": plain_config(config),
        "rankings_sha256": rankings_sha256(rankings),
        "sharded": sharded,
    }


def rankings_sha256(rankings: Sequence[Ranking]) -> str:
    """Return the hash of the rankings, in their order.

    A hash of the file would need to read it again: a pipe can be read once, and a file may have
    changed meanwhile.
    """
    digest = hashlib.sha256()
    for ranking in rankings:
        prompt = [[message.role, message.content] for message in ranking.prompt]
        content = [prompt, ranking.responses, ranking.ranks, ranking.scores]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()


def check_same_run(run: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Raise ConfigError if `run` is not the recorded run."""
    if run["rankings_sha256"] != recorded["rankings_sha256"]:
        raise ConfigError("--resume: the rankings are not those with which the run began")
    if run["sharded"] != recorded.get("sharded", False):
        began, now = ("without FSDP", "with it") if run["sharded"] else ("with FSDP", "without it")
        raise ConfigError(
            f"--resume: the run began {began} and is launched {now}, but its weights are in other "
            "files"
        )
    for name, value in run["config"].items():
        if name not in _FREE_TO_CHANGE and value != recorded["config"].get(name):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"--resume: {flag} was {recorded['config'].get(name)} when the run began and is "
                f"{value} now"
            )
