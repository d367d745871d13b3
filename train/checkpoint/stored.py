"""Names and shapes of the tensors in a checkpoint's files."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

# In the order in which `from_pretrained` looks for them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

_WEIGHT_FILE = re.compile(r"(model|pytorch_model|consolidated)\b.*\.(safetensors|bin|pt|pth)")
_ADAPTER_FILE = re.compile(r"adapter_model\b.*\.(safetensors|bin|pt|pth)")

# Files in which trainers put a head beside the weights of a language model. `from_pretrained` does
# not read them.
_HEAD_FILE = re.compile(
    r"((v|value|reward|rm|score|scalar|regression|classification|classifier)_?head|score|classifier)"
    r"\b.*\.(safetensors|bin|pt|pth)"
)


class StoredTensors:
    """The tensors of a checkpoint as they are stored, under the names in the files.

    Attributes:
        shapes: The shape of each tensor. Empty if the checkpoint is a `.gguf` file, whose names
            transformers translates.
        unlisted: Tensors that the index of a checkpoint in several files does not list. They are
            not read.
    """

    def __init__(self, name: str) -> None:
        """Read the names and shapes, but no tensor.

        Args:
            name: A directory, a hub name or a `.gguf` file, which can be read.
        """
        files, listed = ([], None) if name.endswith(".gguf") else _weight_files(name)
        self._file_of = {tensor: path for path in files for tensor, _ in _contents(path)}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            tensor: shape for path in files for tensor, shape in _contents(path)
        }
        self.unlisted = sorted(self.shapes.keys() - listed) if listed is not None else []

    def described(self, tensor: str) -> str:
        """Return the name of a tensor and its shape if that is known, as "score.bias [1]"."""
        shape = self.shapes.get(tensor)
        return tensor if shape is None else f"{tensor} {list(shape)}"

    def load(self, tensor: str) -> Tensor:
        """Return one tensor.

        Raises:
            KeyError: The checkpoint has no tensor of this name.
        """
        path = self._file_of[tensor]
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                stored: Tensor = file.get_tensor(tensor)
                return stored
        loaded: Tensor = torch.load(path, map_location="cpu", weights_only=True)[tensor]
        return loaded


def unread_weights(name: str) -> list[str]:
    """Return the names of files of weights in a directory that `from_pretrained` does not read."""
    directory = Path(name)
    if not directory.is_dir():
        return []
    read = {path.name for path in _weight_files(name)[0]}
    adapters = sorted(filter(_ADAPTER_FILE.fullmatch, _names(directory)))
    return [*adapters, *(file for file in weights_in(directory) if file not in read)]


def weights_in(directory: Path) -> list[str]:
    """Return the names of files in a directory that hold the weights of a whole model."""
    return sorted(path.name for path in directory.iterdir() if _WEIGHT_FILE.fullmatch(path.name))


def separate_heads(name: str) -> list[str]:
    """Return the names of files beside the weights that hold a head by itself."""
    directory = Path(name)
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if _HEAD_FILE.match(path.name))


def module_weights(name: str) -> list[str]:
    """Return the sub-directories with weights of layers that sentence-transformers puts on top.

    `modules.json` lists them behind the model itself. `from_pretrained` does not read them.
    """
    listed = Path(name) / "modules.json"
    if not listed.is_file():
        return []
    try:
        modules = json.loads(listed.read_text(encoding="utf-8"))
        paths = [module["path"] for module in modules if module["path"]]
    except (ValueError, KeyError, TypeError):
        return []
    return [
        path for path in paths if any(map(_WEIGHT_FILE.fullmatch, _names(listed.parent / path)))
    ]


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []


def _weight_files(name: str) -> tuple[list[Path], set[str] | None]:
    """Return the files that `from_pretrained(name)` reads, and the tensors that their index lists.

    A single file has no index.
    """
    for weights in _WEIGHTS:
        if (path := _cached(name, weights)) is not None:
            return [path], None
        if (index := _cached(name, f"{weights}.index.json")) is not None:
            file_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            paths = [_cached(name, shard) for shard in sorted(set(file_of.values()))]
            return [path for path in paths if path is not None], set(file_of)
    return [], None


def _cached(name: str, file: str) -> Path | None:
    path = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def _contents(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for tensor in file.keys():  # noqa: SIM118 - it is not a mapping
                yield tensor, tuple(file.get_slice(tensor).get_shape())
    else:
        for tensor, value in torch.load(path, map_location="meta", weights_only=True).items():
            yield tensor, tuple(value.shape)
