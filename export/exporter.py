"""Checkpoint → artifact, in reading order: load, choose the layout, write the graph, prove it, publish it.

Everything is written to a temporary directory beside the destination and renamed at the end, so a destination either holds a
whole artifact whose parity was checked, or nothing new.
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from kwise.engine.artifact import (
    CHAT_TEMPLATE,
    GOLDEN,
    MANIFEST,
    MODEL,
    TOKENIZER,
    Artifact,
    Manifest,
    describe_file,
)
from kwise.engine.config import EngineConfig
from kwise.engine.errors import ConfigError
from kwise.engine.options import check_bounds, option
from kwise.engine.scorer import new_encoder
from kwise.engine.session import OnnxSession
from kwise.export.graph import NUM_CLASSES, export_padded, export_trie, is_causal, supports_trie
from kwise.export.parity import ParityCase, check_parity

# Golden conversations are scored at every start of a server: short ones, and few.
_NUM_GOLDEN, _GOLDEN_CHARACTERS = 4, 1500


class Layout(Enum):
    """How a batch is laid out in the graph."""

    AUTO = "auto"
    TRIE = "trie"
    PADDED = "padded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What to export and where to. Raises ConfigError, naming the option and its bound."""

    checkpoint: str = option(help="directory or hub name of a sequence-classification checkpoint with one label")
    artifact: str = option(help="directory to write")
    name: str = option("", "the model's name in requests and replies; the artifact directory's by default")
    layout: Layout = option(Layout.AUTO, "trie shares prompts and needs a causal model; padded takes any")
    chat_template: str = option("", "file with a Jinja chat template to use instead of the checkpoint's")
    max_tokens: int = option(0, "longest conversation; 0 for the model's own limit", minimum=0)
    tolerance: float = option(1e-3, "largest difference of a reward from the checkpoint's", exclusive_minimum=0)
    reward_mean: float = option(0.0, "served value = (raw - mean) / std")
    reward_std: float = option(1.0, "served value = (raw - mean) / std", exclusive_minimum=0)
    overwrite: bool = option(False, "replace an artifact that is already there")

    def __post_init__(self) -> None:
        check_bounds(self)


def export(config: ExportConfig) -> Artifact:
    """Export, check parity, and publish the artifact.

    Raises:
        ConfigError: the checkpoint is no reward model, or an option does not suit it, or the destination exists.
        ParityError: the graph's rewards are not the checkpoint's; nothing was written.
    """
    destination = Path(config.artifact)
    if destination.exists() and not (config.overwrite and (destination / MANIFEST).exists()):
        raise ConfigError(f"{destination} exists; choose another directory, or replace an artifact with --overwrite")
    model, tokenizer = _load(config)
    destination.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        manifest = _write(config, model, tokenizer, work)
        if destination.exists():
            shutil.rmtree(destination)
        _open_permissions(work)
        work.rename(destination)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Artifact(path=destination, manifest=manifest, golden=())


def _load(config: ExportConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in fp32 and tokenizer.

    Raises:
        ConfigError: not one label, a head that the checkpoint does not have, no fast tokenizer, a dated template.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            config.checkpoint, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(config.checkpoint)
    finally:
        transformers_logging.set_verbosity(verbosity)
    if model.config.num_labels != 1:
        raise ConfigError(f"{config.checkpoint} has {model.config.num_labels} labels; a reward model has one")
    if loading["missing_keys"]:
        raise ConfigError(f"{config.checkpoint} is no reward model: it lacks {', '.join(sorted(loading['missing_keys']))}")
    if not tokenizer.is_fast:
        raise ConfigError(f"{config.checkpoint} has no fast tokenizer (tokenizer.json), which the engine needs")
    if config.chat_template:
        tokenizer.chat_template = Path(config.chat_template).read_text(encoding="utf-8")
    if tokenizer.chat_template is None and is_causal(model):
        raise ConfigError(f"{config.checkpoint} has no chat template: give the one it was trained with as --chat-template FILE")
    if "strftime_now" in (tokenizer.chat_template or ""):
        raise ConfigError(
            "the chat template prints today's date (strftime_now), so rewards would change overnight: "
            "give a template with a fixed date as --chat-template FILE"
        )
    return model.eval(), tokenizer


def _write(config: ExportConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Path) -> Manifest:
    """Fill the directory `work` with a whole artifact."""
    layout = config.layout
    if layout is Layout.AUTO:
        layout = Layout.TRIE if supports_trie(model) else Layout.PADDED
    elif layout is Layout.TRIE and not supports_trie(model):
        raise ConfigError(f"--layout trie: {type(model).__name__} cannot share prompts; use --layout padded")
    manifest = _describe(config, model, tokenizer, layout)
    if layout is Layout.TRIE:
        export_trie(model, work)
    else:
        export_padded(model, work)
    tokenizer.backend_tokenizer.save(str(work / TOKENIZER))
    files = [MODEL, f"{MODEL}.data", TOKENIZER]
    if tokenizer.chat_template is not None:
        (work / CHAT_TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
        files.append(CHAT_TEMPLATE)

    files = [name for name in files if (work / name).exists()]
    manifest = replace(manifest, files={name: describe_file(work / name) for name in files})
    artifact = Artifact(path=work, manifest=manifest, golden=())
    report, cases = check_parity(
        model,
        tokenizer,
        new_encoder(artifact, EngineConfig()),
        OnnxSession(artifact),
        layout=manifest.layout,
        max_tokens=manifest.max_tokens,
        tolerance=config.tolerance,
    )
    _write_golden(work / GOLDEN, cases)
    files.append(GOLDEN)
    manifest = replace(manifest, files={name: describe_file(work / name) for name in files}, parity=asdict(report))
    manifest = replace(manifest, fingerprint=manifest.computed_fingerprint())
    (work / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _describe(config: ExportConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout) -> Manifest:
    """The manifest but for what is measured later; sets a padding id where a padded causal model needs one."""
    causal = is_causal(model)
    if layout is Layout.PADDED and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    limit = _model_max_tokens(model, tokenizer)
    if config.max_tokens > limit:
        raise ConfigError(f"--max-tokens is {config.max_tokens}; it must be at most {limit}, the model's own limit")
    return Manifest(
        name=config.name or Path(config.artifact).name,
        layout=layout.value,
        dtype="float32",
        num_classes=NUM_CLASSES if layout is Layout.TRIE else 0,
        max_tokens=config.max_tokens or limit,
        vocab_size=model.get_input_embeddings().num_embeddings,
        pad_token_id=model.config.pad_token_id,
        causal=causal,
        special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        golden_tolerance=config.tolerance,
        files={},
        reward_mean=config.reward_mean,
        reward_std=config.reward_std,
        provenance=_provenance(config, model),
    )


def _model_max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The smaller of what positions and the tokenizer's configuration allow; transformers writes 1e30 for "no limit"."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    return min(limit for limit in limits if limit is not None)


def _provenance(config: ExportConfig, model: PreTrainedModel) -> dict[str, Any]:
    return {
        "checkpoint": Path(config.checkpoint).name,
        "model_type": model.config.model_type,
        "parameters": model.num_parameters(),
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("kwise", "torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")},
    }


def _open_permissions(directory: Path) -> None:
    """What mkdtemp and onnx write only the owner can read; a server may run as another user."""
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)


def _write_golden(path: Path, cases: list[ParityCase]) -> None:
    short = [c for c in cases if sum(len(m.content) for m in c.prompt) + len(c.response) < _GOLDEN_CHARACTERS]
    lines = [
        {"prompt": [asdict(m) for m in case.prompt], "response": case.response, "reward": case.reward}
        for case in short[:_NUM_GOLDEN]
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
