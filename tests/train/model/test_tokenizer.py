"""A tokenizer with which rewards could not be right is refused before training and export."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.errors import ConfigError
from kwise.train.model.tokenizer import read_fast_tokenizer
from tests.tiny_models import byte_tokenizer


def saved(path: Path) -> Path:
    byte_tokenizer().save_pretrained(path)
    (path / "config.json").write_text("{}")
    return path


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_tokenizer_that_drops_merges_at_random_is_refused(tmp_path: Path) -> None:
    """The engine's tokens were said to be others than those of transformers."""
    path = saved(tmp_path) / "tokenizer.json"
    edit(path, model={**json.loads(path.read_text())["model"], "dropout": 0.1})
    with pytest.raises(ConfigError, match=r"leaves out merges at random \(dropout 0\.1\)"):
        read_fast_tokenizer("--model", str(tmp_path))


def test_a_tokenizer_that_splits_special_tokens_is_refused(tmp_path: Path) -> None:
    edit(saved(tmp_path) / "tokenizer_config.json", split_special_tokens=True)
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json has split_special_tokens"):
        read_fast_tokenizer("--model", str(tmp_path))


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0",'])
def test_a_file_that_is_no_tokenizer_is_named(content: str, tmp_path: Path) -> None:
    """The message was: Model missing. at line 1 column 2."""
    (saved(tmp_path) / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r": tokenizer\.json is not a tokenizer \(.*get it again"):
        read_fast_tokenizer("--model", str(tmp_path))


def test_a_checkpoint_without_a_tokenizer_is_told_so(tmp_path: Path) -> None:
    """The message was: 'NoneType' object has no attribute 'endswith'."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"has no tokenizer \(tokenizer\.json\); save it beside"):
        read_fast_tokenizer("CHECKPOINT", str(tmp_path))
