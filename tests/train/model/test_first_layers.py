"""A reward model of the first layers is a plain checkpoint of a smaller model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kwise.errors import ConfigError
from kwise.train.model.reward_model import load_reward_model
from kwise.types import Message
from tests.tiny_models import GROUPED, PADDED, SMALL, TRIE, tiny_model

CONVERSATION = (
    Message(role="user", content="Why is the sky blue?"),
    Message(role="assistant", content="Air scatters blue light more."),
)


@pytest.mark.parametrize("name", [*TRIE, *PADDED])
def test_the_saved_model_has_the_layers_and_the_same_rewards(
    name: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    family, options = {**TRIE, **PADDED}[name]
    whole = tiny_model(family, options, smollm2_tokenizer, tmp_path / "whole")
    first = load_reward_model(str(whole), num_layers=1)
    rewards = first.rewards([CONVERSATION])
    assert rewards != load_reward_model(str(whole)).rewards([CONVERSATION])
    first.save(tmp_path / "first")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    assert plain.config.num_hidden_layers == 1
    ids = first.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in CONVERSATION], return_dict=False
    )
    with torch.no_grad():
        assert rewards == pytest.approx(plain(torch.tensor([ids])).logits[0].tolist(), abs=1e-5)
    again = load_reward_model(str(tmp_path / "first"))
    assert again.rewards([CONVERSATION]) == pytest.approx(rewards, abs=1e-6)


def test_the_layers_are_the_first_ones(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    path = str(
        tiny_model("Llama", {**GROUPED, "num_hidden_layers": 3}, smollm2_tokenizer, tmp_path)
    )
    whole, first = load_reward_model(path).model, load_reward_model(path, num_layers=2).model
    kept = first.state_dict()
    assert {name for name in whole.state_dict() if name not in kept} == {
        name for name in whole.state_dict() if ".layers.2." in name
    }
    for name, weight in kept.items():
        assert torch.equal(weight, whole.state_dict()[name]), name


def test_lists_with_an_entry_for_each_layer_are_cut(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    options = {**TRIE["gemma2"][1], "num_hidden_layers": 4}
    path = tiny_model("Gemma2", options, smollm2_tokenizer, tmp_path)
    config = load_reward_model(str(path), num_layers=3).model.config
    assert config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]


def test_more_layers_than_the_model_has_are_refused(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    path = str(tiny_model("Llama", GROUPED, smollm2_tokenizer, tmp_path))
    assert load_reward_model(path, num_layers=2).model.config.num_hidden_layers == 2
    with pytest.raises(ConfigError, match="--layers is 3; the model has 2 layers"):
        load_reward_model(path, num_layers=3)


def test_a_model_that_shares_its_layers_is_refused(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    options = {**SMALL, "embedding_size": 32, "max_position_embeddings": 512}
    path = str(tiny_model("Albert", options, smollm2_tokenizer, tmp_path))
    with pytest.raises(ConfigError, match=r"--layers: Albert.* does not have its layers in one"):
        load_reward_model(path, num_layers=1)
