"""Check that runs have in common what the mean of their weights needs.

Two networks that were trained from the same weights can often be averaged, because all networks on
the line between them are as good as they are. If they were trained from different weights, the
networks between them are worse (Frankle et al. 2020, arXiv:1912.05671).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kwise.errors import ConfigError
from kwise.train.checkpoint.members import num_members
from kwise.train.model.tokenizer import load_tokenizer
from kwise.train.report.provenance import tokenizer_sha256
from kwise.train.report.training_report import read_report
from kwise.train.run.unfinished_run import REPORT_NAME

# They say who wrote the config, and how the weights are stored.
_NOT_OF_MODEL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The checkpoint of a run, without its weights.

    Attributes:
        name: its directory.
        config: config.json, as far as it describes the model.
        tokenizer_sha256: see provenance.
        template_sha256: hash of the chat template.
        report: training_report.json; empty without one.
    """

    name: str
    config: dict[str, Any]
    tokenizer_sha256: str
    template_sha256: str | None
    report: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> Self:
        """Read a checkpoint.

        Raises:
            ConfigError: it is not a directory with a readable config.json, or its tokenizer cannot
                be used.
        """
        try:
            config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise ConfigError(
                f"CHECKPOINT {name}: it is not a directory with a readable config.json"
            )
        tokenizer, template = load_tokenizer(name, None, "", option="CHECKPOINT", to_train=False)
        return cls(
            name=name,
            config={key: value for key, value in config.items() if key not in _NOT_OF_MODEL},
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            template_sha256=template.sha256,
            report=read_report(Path(name) / REPORT_NAME),
        )


def check_agreement(runs: Sequence[Run]) -> list[str]:
    """Check that the mean of the runs' weights is a model.

    Returns:
        Notes on what could not be checked.

    Raises:
        ConfigError: there are fewer than two runs; one is given twice, or has several heads, whose
            means depend on data; or two differ in their config, tokenizer, chat template or the
            weights that they were trained from.
    """
    if len(runs) < 2:
        raise ConfigError("CHECKPOINT: give two or more; the mean of one is itself")
    first = runs[0]
    for number, run in enumerate(runs):
        if any(Path(run.name).samefile(earlier.name) for earlier in runs[:number]):
            raise ConfigError(f"CHECKPOINT {run.name} is given twice")
        if (heads := num_members(f"CHECKPOINT {run.name}", run.config)) > 1:
            raise ConfigError(
                f"CHECKPOINT {run.name} has {heads} heads; the mean that is subtracted from the "
                "rewards of each depends on data, which kwise average does not read"
            )
    for run in runs[1:]:
        for key in sorted(first.config.keys() | run.config.keys()):
            ours, theirs = run.config.get(key), first.config.get(key)
            if ours != theirs:
                raise ConfigError(
                    f"CHECKPOINT {run.name}: {key} in config.json is {ours}, and in that of "
                    f"{first.name} {theirs}; they must be equal"
                )
        if run.tokenizer_sha256 != first.tokenizer_sha256:
            raise ConfigError(f"CHECKPOINT {run.name}: its tokenizer is not that of {first.name}")
        if run.template_sha256 != first.template_sha256:
            raise ConfigError(
                f"CHECKPOINT {run.name}: its chat template, or the date that it prints, is not "
                f"that of {first.name}"
            )
    return [*_check_start(runs), *_notes_on_seeds(runs)]


def _check_start(runs: Sequence[Run]) -> list[str]:
    """Return notes, or raise ConfigError if two runs started from different weights."""
    starts = {run.name: run.report.get("model_sha256") for run in runs}
    known = {name: start for name, start in starts.items() if isinstance(start, str)}
    if len(set(known.values())) > 1:
        first = next(iter(known))
        other = next(name for name, start in known.items() if start != known[first])
        raise ConfigError(
            f"CHECKPOINT {other}: it was not trained from the same weights as {first} "
            f"(model_sha256 in {REPORT_NAME}), so the mean of their weights is not a usable model"
        )
    return [
        f"{name} has no readable {REPORT_NAME} of kwise train, so nothing shows that it was "
        "trained from the same weights"
        for name in starts
        if name not in known
    ]


def _notes_on_seeds(runs: Sequence[Run]) -> list[str]:
    """Return notes on what follows from different seeds of the runs."""
    configs = [run.report.get("config") for run in runs]
    seeds = {config.get("seed") for config in configs if isinstance(config, dict)}
    if len(seeds) < 2:
        return []
    notes = [
        "the runs have different seeds, so if the model had no head, their heads started apart"
    ]
    if any(run.report.get("num_validation") and not run.report.get("validation") for run in runs):
        notes.append(
            "each seed held out other prompts of DATA, so evaluate the mean on prompts that no run "
            "was trained on"
        )
    return notes
