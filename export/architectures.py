"""Walk through every architecture with which transformers classifies sequences.

    python -m kwise.export.architectures --output docs/architectures/transformers-4.md [TYPE …]

For each one a small checkpoint with random weights is written and taken the way of a user: loaded
for training, checked for the export, exported. Either the artifact gives transformers' rewards at 1
to 1000 tokens (export checks that), or the model is refused in one line before training. Anything
else is a bug, is marked in the table, and makes the exit code 1. The walk takes about ten minutes
on one core.
"""

import argparse
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from kwise.errors import ConfigError
from kwise.export.config import ExportConfig
from kwise.export.exporter import export
from kwise.export.rehearsal import rehearse_all_layouts
from kwise.train.model.architecture.small_copy import config_parts, small_model
from kwise.train.model.reward_model import load_reward_model

MAX_TOKENS = 1000
# Random weights make larger rounding errors than those of a trained model.
_TOLERANCE = 3e-4
_SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|pad|>")  # ids 0 to 5
_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% else %}{{ '</s>' }}{% endif %}"
)
_SETTINGS: Mapping[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 5,
    "decoder_start_token_id": 5,
    "pad_index": 5,
    "use_mamba_kernels": False,  # they need a GPU
    "default_language": "en_XX",
}
"""Settings that every config gets that has them, because it is for another tokenizer or machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The outcome of the walk for one architecture.

    Attributes:
        model_type: as in config.json.
        architecture: the class of transformers.
        training: the layout in training; "" if the model is refused.
        artifact: the layout of the artifact; "" if the model is refused.
        max_tokens: the longest conversation of the artifact; None if the model is refused.
        reason: why the model is refused.
        bug: what went wrong instead.
    """

    model_type: str
    architecture: str
    training: str = ""
    artifact: str = ""
    max_tokens: int | None = None
    reason: str = ""
    bug: str = ""


def architectures() -> dict[str, tuple[type[PretrainedConfig], type]]:
    """Return the config and the model of each type that classifies sequences."""
    found = {}
    for config in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        model = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config]
        found[config.model_type] = config, model[0] if isinstance(model, tuple) else model
    return dict(sorted(found.items()))


def walk(model_types: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each of these types of models.

    Raises:
        KeyError: the installed transformers has no such type.
    """
    known = architectures()
    for model_type in model_types:
        with tempfile.TemporaryDirectory(prefix="kwise-architecture-") as directory:
            yield _try(model_type, *known[model_type], Path(directory))


def small_checkpoint(kind: type, config: PretrainedConfig, directory: Path) -> None:
    """Write a small random checkpoint of the class; raise what the class raises."""
    tokenizer = _tokenizer()
    for part in (config, *config_parts(config)):
        settings = {**_SETTINGS, "vocab_size": len(tokenizer)}
        for name, value in settings.items():
            if hasattr(part, name):
                setattr(part, name, value)
    config.num_labels = 1
    config.pad_token_id = _SETTINGS["pad_token_id"]
    model = small_model(kind, config)
    vars(model.config).pop("use_cache", None)  # XLNet warns about it
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _try(model_type: str, config: type[PretrainedConfig], kind: type, directory: Path) -> Row:
    checkpoint, artifact = directory / "checkpoint", directory / "artifact"
    row = Row(model_type=model_type, architecture=kind.__name__)
    training = ""
    try:
        small_checkpoint(kind, config(), checkpoint)
    except Exception as error:  # noqa: BLE001 - it needs other packages, or images
        reason = f"{kind.__name__} cannot be made here: {_one_line(error, checkpoint)[:160]}"
        return replace(row, reason=reason)
    try:
        loaded = load_reward_model(str(checkpoint))
        training = loaded.layout.name
        rehearse_all_layouts(loaded.model, loaded.tokenizer, loaded.max_tokens)
    except ConfigError as error:
        return replace(row, training=training, reason=_one_line(error, checkpoint))
    except Exception as error:  # noqa: BLE001 - it is reported
        traceback.print_exc()
        return replace(row, bug=f"before training: {type(error).__name__}: {error}")
    try:
        options = ExportConfig(
            checkpoint=str(checkpoint), artifact=str(artifact), tolerance=_TOLERANCE
        )
        manifest = export(options).manifest
    except Exception as error:  # noqa: BLE001 - it is reported
        traceback.print_exc()
        return replace(row, training=training, bug=f"at export: {type(error).__name__}: {error}")
    return replace(row, training=training, artifact=manifest.layout, max_tokens=manifest.max_tokens)


def table(rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("transformers", "optimum-onnx", "torch", "onnx")
    )
    exported = [row for row in rows if row.artifact]
    introduction = (
        f"Generated by `python -m kwise.export.architectures` ({versions}). {len(exported)} of "
        f"{len(rows)} architectures are exported; the others are refused in one line before "
        "training. [architectures.md](../architectures.md) explains the columns."
    )
    lines = [
        f"# Architectures of transformers {transformers.__version__}",
        "",
        textwrap.fill(introduction, width=100, break_long_words=False),
        "",
        "| model type | architecture | training | artifact | tokens | why it is refused |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model_type} | {row.architecture} | {row.training} | {row.artifact} | "
        f"{_tokens(row)} | {row.reason or (row.bug and f'**BUG** {row.bug}')} |".replace("  ", " ")
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _tokens(row: Row) -> str:
    if row.max_tokens is None:
        return ""
    limited = row.max_tokens < MAX_TOKENS
    return f"up to {row.max_tokens}" if limited else "all"


def _one_line(error: Exception, checkpoint: Path) -> str:
    text = " ".join(str(error).split()).replace(str(checkpoint), "MODEL")
    return text.replace("|", "\\|")


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, with a chat template that ends with the token of the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<|pad|>",
        model_max_length=MAX_TOKENS,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def main() -> int:
    """Walk, print each row, and write the table; return 1 if there is a bug."""
    parser = argparse.ArgumentParser(prog="python -m kwise.export.architectures")
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all by default")
    parser.add_argument("--output", type=Path, help="file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for row in walk(arguments.types or list(architectures())):
        rows.append(row)
        print(row, file=sys.stderr, flush=True)  # noqa: T201
    if arguments.output:
        arguments.output.write_text(table(rows), encoding="utf-8")
    else:
        print(table(rows))  # noqa: T201
    return 1 if any(row.bug for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
