"""Say what is wrong with the files of a checkpoint that a library could not read.

The messages of the libraries name neither the file nor the cause: a pointer of Git LFS is a "header
too large" to safetensors and an "expected value at line 1 column 1" to tokenizers.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from kwise.libraries.errors import cause_of

CONFIGS = ("config.json", "adapter_config.json")
"""The files of which a directory with a model or an adapter has one."""

_POINTER = b"version https://git-lfs"
_SUFFIXES = {".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".jinja", ".gguf"}
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "spiece.model", "*.model")


def file_problem(name: str) -> str | None:
    """Return what is wrong with the files of a checkpoint, and what to do; None if nothing is.

    Args:
        name: a directory, a hub name or a `.gguf` file, which could not be read.
    """
    path = Path(name)
    if path.is_file():
        return _pointer([path])
    if not path.is_dir():
        return None
    files = sorted(file for file in path.iterdir() if file.is_file())
    return (
        _pointer(file for file in files if file.suffix in _SUFFIXES)
        or _missing_part(path)
        or _damaged(file for file in files if file.suffix == ".safetensors")
        or _unreadable_tokenizer(path / "tokenizer.json")
    )


def has_tokenizer(name: str) -> bool:
    """Return whether a checkpoint has files of a tokenizer. A hub name may have some."""
    path = Path(name)
    return not path.is_dir() or any(any(path.glob(pattern)) for pattern in _TOKENIZER_FILES)


def directories_with_config(directory: Path) -> list[str]:
    """Return the names of the sub-directories that hold a model or an adapter.

    Trainers write `checkpoint-500`, `checkpoint-1000` and so on; these are in the order of numbers.
    """
    found = {file.parent.name for config in CONFIGS for file in directory.glob(f"*/{config}")}
    return sorted(found, key=lambda name: (len(name), name))


def _pointer(files: Iterator[Path] | list[Path]) -> str | None:
    for file in files:
        with file.open("rb") as content:
            if content.read(len(_POINTER)) == _POINTER:
                return f"{file.name} is a pointer of Git LFS; get the file itself: git lfs pull"
    return None


def _missing_part(path: Path) -> str | None:
    """Return a file of weights that an index lists and the directory lacks."""
    for index in sorted(path.glob("*.index.json")):
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is not an index of weights"
        missing = sorted(file for file in listed if not (path / file).is_file())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return f"{missing[0]}{more} of {index.name} is missing; get it again"
    return None


def _damaged(files: Iterator[Path]) -> str | None:
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            return f"{file.name} is damaged or incomplete ({cause_of(error)}); get it again"
    return None


def _unreadable_tokenizer(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain exceptions
        return f"{path.name} is not a tokenizer ({cause_of(error)}); get it again"
    return None
