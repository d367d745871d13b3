"""Copies of a checkpoint with an edited config or edited weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def copy_checkpoint(
    source: Path,
    path: Path,
    *,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    without: tuple[str, ...] = (),
    **stated: Any,
) -> Path:
    """Copy a checkpoint to `path`, and return `path`.

    Args:
        source: A directory with config.json and model.safetensors.
        path: The new directory.
        change: Returns the tensors of the copy, given those of the source.
        without: Keys to remove from config.json.
        stated: Keys to set in config.json.
    """
    shutil.copytree(source, path)
    config = json.loads((path / "config.json").read_text()) | stated
    kept = {key: value for key, value in config.items() if key not in without}
    (path / "config.json").write_text(json.dumps(kept))
    tensors = change(load_file(path / "model.safetensors"))
    contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path / "model.safetensors", metadata={"format": "pt"})
    return path
