"""A checkpoint that cannot be read is told by the file that is the cause, and what to do."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kwise.errors import ConfigError
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.pretrained import check_source
from tests.edited_checkpoints import copy_checkpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def pointer_for_weights(path: Path) -> None:
    (path / "model.safetensors").write_text(POINTER)


def pointer_for_config(path: Path) -> None:
    (path / "config.json").write_text(POINTER)


def half_of_the_weights(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


def shard_that_is_missing(path: Path) -> None:
    (path / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"score.weight": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (pointer_for_weights, "model.safetensors is a pointer of Git LFS; get the file itself"),
        (pointer_for_config, "config.json is a pointer of Git LFS; get the file itself"),
        (half_of_the_weights, "model.safetensors is damaged or incomplete ("),
        (
            shard_that_is_missing,
            "model-00002-of-00002.safetensors of model.safetensors.index.json is missing",
        ),
    ],
)
def test_the_file_that_cannot_be_read_is_named(
    fault: Callable[[Path], None], problem: str, llama: Path, tmp_path: Path
) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy")
    (path / "picture.png").write_text(POINTER)  # which is no part of the model
    fault(path)
    with pytest.raises(ConfigError, match=re.escape(f"--model {path}: {problem}")):
        load_checkpoint("--model", str(path), to_train=True)


def test_files_are_not_blamed_for_another_cause(llama: Path, tmp_path: Path) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", hidden_act="none")
    (path / "picture.png").write_text(POINTER)
    with pytest.raises(ConfigError, match=r"cannot be read: KeyError: .*none"):
        load_checkpoint("--model", str(path), to_train=True)


def test_the_directory_of_a_trainer_names_its_newest_checkpoints(tmp_path: Path) -> None:
    """transformers lists the names of all architectures."""
    for step in (500, 1000, 1500, 2000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    found = "no config.json; one is in checkpoint-1000, checkpoint-1500, checkpoint-2000"
    with pytest.raises(ConfigError, match=f"{found}$"):
        check_source("--model", str(tmp_path))
