"""The origin of a checkpoint: hashes of what it was made from, and the versions of the code.

The data is identified by its hash too, see rankings/hash.py.
"""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from kwise.train.model.adapter_source import find_adapter
from kwise.train.model.pretrained import reading

# The files of a model that decide its rewards. Tokenizer and template are hashed as they are used.
_MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model*.bin",
)

_PACKAGES = ("kwise", "torch", "transformers", "accelerate", "peft", "bitsandbytes", "tokenizers")


def git_revision() -> str | None:
    """Return the commit of the working directory, with "-dirty" if tracked files have changed.

    None outside of a git repository.
    """
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def model_sha256(name: str) -> str:
    """Return a hash of the files of a model: its config and its weights.

    All bytes are read, because models of one architecture differ in nothing else. That takes 0.5 to
    2 s per GB, and the files are read anyway. An adapter's base model is part of the hash.

    Args:
        name: a Hugging Face directory, a hub name or a `.gguf` file.

    Raises:
        ConfigError: the model cannot be read.
    """
    digest = hashlib.sha256()
    for path in _model_files(name):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        digest.update(f"{path.name} {content.hexdigest()}\n".encode())
    adapter = find_adapter("--model", name)
    if adapter is not None:
        digest.update(f"base {model_sha256(adapter.base)}\n".encode())
    return digest.hexdigest()


def _model_files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        with reading("--model", name):
            adapter = find_adapter("--model", name)
            found = cached_file(name, "adapter_config.json" if adapter else "config.json")
        path = Path(str(found)).parent
    files = {file for pattern in _MODEL_FILES for file in path.glob(pattern) if file.is_file()}
    # Weights in safetensors are preferred to the same weights in PyTorch's format.
    if any(file.suffix == ".safetensors" for file in files):
        files = {file for file in files if file.suffix != ".bin"}
    return sorted(files)


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a fast tokenizer, and of what its configuration adds.

    That is the special tokens that a template may name, the limit of tokens, and the names of the
    model's inputs.
    """
    added = [
        tokenizer.special_tokens_map,
        tokenizer.model_max_length,
        list(tokenizer.model_input_names),
    ]
    content = tokenizer.backend_tokenizer.to_str() + json.dumps(added, default=str, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that the result depends on."""
    versions_by_package = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions_by_package[package] = version(package)
        except PackageNotFoundError:  # some come with an extra
            continue
    return versions_by_package
