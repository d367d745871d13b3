"""transformers 4 and 5 write configs and tokenizers in other words; kwise reads the words of both.

The tests run with the installed version and give it the words of both.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from kwise.errors import ConfigError
from kwise.train.checkpoint.transformers_versions import (
    IS_TRANSFORMERS_5,
    ROTARY_KEYS,
    read_config,
    read_tokenizer,
)
from kwise.train.model.checkpoint import load_checkpoint
from tests.edited_checkpoints import copy_checkpoint
from tests.tiny_models import GROUPED, SMALL

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BY_LAYER = {
    "full_attention": {"rope_type": "default", "rope_theta": 700.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}


def reward(checkpoint: Path) -> float:
    """Return the reward of 90 tokens, of a checkpoint about which there is nothing to tell."""
    loaded = load_checkpoint("CHECKPOINT", str(checkpoint), to_train=False)
    assert not loaded.notes
    with torch.inference_mode():
        return float(loaded.model.eval()(torch.arange(6, 96)[None]).logits)


@pytest.mark.parametrize(
    ("family", "options", "of_version_4", "of_version_5"),
    [
        ("llama", GROUPED, {"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}),
        (
            "llama",
            GROUPED,
            {"rope_theta": 500.0, "rope_scaling": LLAMA3},
            {**LLAMA3, "rope_theta": 500.0},
        ),
        (
            "gpt_neox",
            {**SMALL, "max_position_embeddings": 512},
            {"rotary_emb_base": 500, "rotary_pct": 0.5},
            {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5},
        ),
        (
            "gemma3_text",
            {**GROUPED, "num_hidden_layers": 6, "sliding_window": 16},
            {"rope_theta": 700.0, "rope_local_base_freq": 300.0},
            BY_LAYER,
        ),
        (
            "modernbert",
            {**SMALL, "reference_compile": False, "local_attention": 16},
            {"global_rope_theta": 700.0, "local_rope_theta": 300.0},
            BY_LAYER,
        ),
    ],
)
def test_rotary_embeddings_are_the_same_in_the_words_of_both_versions(
    family: str,
    options: dict[str, Any],
    of_version_4: dict[str, Any],
    of_version_5: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Version 4 ignored the words of version 5, and the rewards were others."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, vocab_size=99, num_labels=1, pad_token_id=0, **options)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "default")
    keys = tuple(ROTARY_KEYS)
    default, first, second = (
        reward(copy_checkpoint(tmp_path / "default", tmp_path / name, without=without, **stated))
        for name, without, stated in (
            ("copy", (), {}),
            ("4", tuple(key for key in keys if key not in of_version_4), of_version_4),
            (
                "5",
                tuple(key for key in keys if key != "rope_parameters"),
                {"rope_parameters": of_version_5},
            ),
        )
    )
    assert first == pytest.approx(second, abs=1e-6)
    assert abs(first - default) > 1e-2, "figures that are ignored must show"


@pytest.mark.skipif(IS_TRANSFORMERS_5, reason="transformers 5 reads its own words")
def test_rotary_embeddings_without_a_name_in_version_4_are_refused(
    llama: Path, tmp_path: Path
) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", rope_parameters=BY_LAYER)
    with pytest.raises(
        ConfigError, match=r"rope_parameters of transformers 5, which transformers 4\.57.* llama; "
    ):
        load_checkpoint("CHECKPOINT", str(path), to_train=False)


def test_a_model_for_which_the_versions_differ_is_refused(llama: Path, tmp_path: Path) -> None:
    own, other = ("5.24.0", "4.57.6") if IS_TRANSFORMERS_5 else ("4.57.6", "5.24.0")
    for version in (own, other):
        path = copy_checkpoint(
            llama, tmp_path / version, model_type="doge", transformers_version=version
        )
        if version == own:
            read_config(pretrained_model_name_or_path=str(path))
        else:
            with pytest.raises(ConfigError, match=f"of type doge, for which transformers {other},"):
                read_config(pretrained_model_name_or_path=str(path))


def test_figures_that_version_4_would_not_use_are_refused(llama: Path, tmp_path: Path) -> None:
    """Version 4 turns all layers of ModernBERT's decoder by the global figures."""
    for name, theta in (("same", 700.0), ("other", 300.0)):
        figures = {kind: {"rope_type": "default", "rope_theta": 700.0} for kind in BY_LAYER}
        figures["sliding_attention"]["rope_theta"] = theta
        path = copy_checkpoint(
            llama, tmp_path / name, model_type="modernbert-decoder", rope_parameters=figures
        )
        if name == "same" or IS_TRANSFORMERS_5:
            read_config(pretrained_model_name_or_path=str(path))
        else:
            with pytest.raises(ConfigError, match="in a model of type modernbert-decoder; "):
                read_config(pretrained_model_name_or_path=str(path))


@pytest.mark.parametrize(
    "written",
    [
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": ["<extra>"]},
        {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"},
        {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<extra>"]},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ],
)
def test_a_tokenizer_is_what_its_file_says_whatever_class_a_version_names(
    written: dict[str, Any], smollm2_tokenizer: Any, llama: Path, tmp_path: Path
) -> None:
    """Version 5 split texts by the rules of the class, and version 4 refused classes of 5."""
    smollm2_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    special = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(special | written))
    tokenizer = read_tokenizer(str(tmp_path))
    text = "It's 12345 €\n\n\n  Ä, a\u0308 <|im_end|>"
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert tokenizer(text)["input_ids"] == expected
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.is_fast and tokenizer.chat_template == smollm2_tokenizer.chat_template
    for token in written.get("extra_special_tokens", []):
        assert token in tokenizer.all_special_tokens
