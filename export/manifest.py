"""The part of an artifact's manifest that is known before the graph is written."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec import UNSET

from kwise.engine.artifact.manifest import Manifest, Member
from kwise.export.checkpoint import Checkpoint
from kwise.export.config import ExportConfig
from kwise.export.rehearsal import Rehearsal
from kwise.train.checkpoint.ids import usable_id
from kwise.train.report.training_report import read_report
from kwise.train.run.unfinished_run import REPORT_NAME
from kwise.train.template.render import template_variables


def describe(config: ExportConfig, checkpoint: Checkpoint, rehearsal: Rehearsal) -> Manifest:
    """Return the manifest without what is measured later."""
    tokenizer, pad_token_id = checkpoint.tokenizer, checkpoint.pad_token_id
    if rehearsal.layout != "trie" and pad_token_id is None:
        # The model is an encoder, which masks whatever token this is.
        pad_token_id = usable_id(tokenizer.pad_token_id, checkpoint.num_rows) or 0
    return Manifest(
        name=config.name or Path(config.artifact).resolve().name,
        layout=rehearsal.layout,
        graphs={},
        error_bounds={},
        max_tokens=rehearsal.max_tokens or 1,
        vocab_size=checkpoint.num_rows,
        pad_token_id=pad_token_id,
        causal=checkpoint.causal,
        response_header=checkpoint.statements.response_header or UNSET,
        special_tokens=template_variables(tokenizer),
        files={},
        **_scale(config, checkpoint),
        provenance=_provenance(checkpoint),
    )


def _scale(config: ExportConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the fields of the manifest that scale rewards, for each member if there are any."""
    stated, num_members = checkpoint.statements, checkpoint.num_members
    means, stds = (
        (given,) * num_members if given is not None else stated_numbers or default
        for given, stated_numbers, default in (
            (config.reward_mean, stated.reward_mean, stated.member_means or (0.0,)),
            (config.reward_std, stated.reward_std, (1.0,) * num_members),
        )
    )
    if num_members == 1:
        return {"reward_mean": means[0], "reward_std": stds[0]}
    members = (Member(mean=mean, std=std) for mean, std in zip(means, stds, strict=True))
    return {"members": tuple(members)}


def scale_notes(config: ExportConfig, checkpoint: Checkpoint) -> list[str]:
    """Return a note if the checkpoint says how its rewards are scaled."""
    stated = checkpoint.statements
    member_means = stated.member_means if any(stated.member_means) else None
    used = [
        f"{name}{'' if len(numbers) == 1 else 's'} {', '.join(f'{number:g}' for number in numbers)}"
        for name, numbers, given in (
            ("mean", stated.reward_mean or member_means, config.reward_mean),
            ("std", stated.reward_std, config.reward_std),
        )
        if numbers and given is None
    ]
    if not used:
        return []
    return [
        f"served values are (raw - mean) / std with the {' and '.join(used)} of config.json "
        "(--reward-mean, --reward-std)"
    ]


def other_template_notes(checkpoint: Checkpoint) -> list[str]:
    """Return a note if the checkpoint's report says that it was trained with another template."""
    trained_with = read_report(Path(checkpoint.name) / REPORT_NAME).get("template_sha256")
    if trained_with in (None, checkpoint.template.sha256):
        return []
    return [
        f"{checkpoint.name} was not trained with {checkpoint.template.origin}, so its rewards are "
        "not those that training measured"
    ]


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": Path(checkpoint.name).name,
        "chat_template": _template(checkpoint),
        "model_type": checkpoint.model.config.model_type,
        "parameters": checkpoint.model.num_parameters(),
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            name: version(name)
            for name in ("kwise", "torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
        },
    }


def _template(checkpoint: Checkpoint) -> dict[str, str | None]:
    """Return where the chat template comes from, its hash, and the date that it prints.

    A checkpoint that kwise trained has a report, which knows where its template came from.
    """
    template = checkpoint.template
    report = read_report(Path(checkpoint.name) / REPORT_NAME)
    as_trained = report.get("template_sha256") == template.sha256
    return {
        "origin": template.origin.replace(checkpoint.name, Path(checkpoint.name).name),
        "origin_in_training": report.get("template") if as_trained else None,
        "sha256": template.sha256,
        "date": report.get("template_date") if as_trained else template.date,
    }
