"""A reward model of the first layers is a plain checkpoint of a smaller model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from kwise.errors import ConfigError
from kwise.train.model.architecture.first_layers import keep_first_layers
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import TrainConfig
from kwise.types import Message
from tests.tiny_models import GROUPED, PADDED, SMALL, TRIE, byte_tokenizer, tiny_model

CONVERSATION = (
    Message(role="user", content="Why is the sky blue?"),
    Message(role="assistant", content="Air scatters blue light more."),
)


def tiny_classifier(family: str, options: dict[str, Any]) -> Any:
    """Return a random model of the family with 64 tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    if family != "GPTNeo":
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 8}
    if family == "DeepseekV3":
        sizes |= {"q_lora_rank": 16, "kv_lora_rank": 16, "n_routed_experts": 8, "n_group": 2}
        sizes |= {"topk_group": 1, "num_experts_per_tok": 2}
    elif family in ("Gemma3Text", "Qwen3Moe"):
        sizes["head_dim"] = 16
    tokens = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**sizes, **tokens, num_labels=1, **options)
    return getattr(transformers, f"{family}ForSequenceClassification")(config)


@pytest.mark.parametrize("name", [*TRIE, *PADDED])
def test_the_saved_model_has_the_layers_and_the_same_rewards(name: str, tmp_path: Path) -> None:
    family, options = {**TRIE, **PADDED}[name]
    whole = tiny_model(family, options, byte_tokenizer(), tmp_path / "whole", 5)
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
    whole, cut = load_reward_model(path).model, load_reward_model(path, num_layers=2)
    assert "the first 2 of 3 layers are kept (--layers)" in cut.notes
    kept = cut.model.state_dict()
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


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (
            "GPTNeo",
            {
                "num_layers": 4,
                "num_heads": 4,
                "window_size": 8,
                "attention_types": [[["global", "local"], 2]],
            },
        ),
        ("Longformer", {"num_hidden_layers": 4, "attention_window": [8, 16, 16, 16]}),
        ("Gemma3Text", {"num_hidden_layers": 4, "sliding_window_pattern": 2}),
        ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
        ("Qwen2", {"num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 2}),
        ("DeepseekV3", {"num_hidden_layers": 4, "first_k_dense_replace": 1}),
        # As many experts as layers; indices in an order of their own.
        ("Qwen3Moe", {"num_hidden_layers": 4, "num_experts": 4, "mlp_only_layers": [3, 1, 2, 0]}),
        ("Mixtral", {"num_hidden_layers": 4, "num_local_experts": 4}),
        ("ModernBert", {"num_hidden_layers": 4, "global_attn_every_n_layers": 2}),
    ],
)
def test_the_saved_config_describes_the_layers(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_classifier(family, options)
    keep_first_layers(model, 3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.arange(6, 46)[None]  # longer than the windows
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(ids).logits, model.eval()(ids).logits, atol=1e-6)


def test_a_config_that_cannot_describe_the_layers_is_refused() -> None:
    model = tiny_classifier("Llama", {"num_hidden_layers": 4})
    model.base_model.layers[1].self_attn.scaling = 0.5  # not in the config
    with pytest.raises(ConfigError, match="cannot describe its first 2 layers"):
        keep_first_layers(model, 2)


def test_layers_that_the_config_derives_are_refused() -> None:
    sizes = {"d_model": 64, "d_head": 16, "n_head": 4, "d_inner": 96, "vocab_size": 64}
    config = transformers.FunnelConfig(block_sizes=[4], num_labels=1, **sizes)
    model = transformers.FunnelForSequenceClassification(config)
    with pytest.raises(ConfigError, match=r"--layers: .*cannot describe .* layers: .*block_sizes"):
        keep_first_layers(model, 2)


def test_the_implementation_of_attention_is_no_difference() -> None:
    """The classes of BERT's layers depend on it."""
    model = tiny_classifier("Bert", {"num_hidden_layers": 3, "attn_implementation": "eager"})
    assert model.config._attn_implementation == "eager"
    keep_first_layers(model, 2)
    assert model.config.num_hidden_layers == 2


def test_an_encoder_and_a_decoder_are_refused() -> None:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 64}
    model = tiny_classifier("Bart", {**heads, "encoder_layers": 3, "decoder_layers": 2})
    with pytest.raises(ConfigError, match=r"--layers: Bart.* does not have its layers in one list"):
        keep_first_layers(model, 2)


def test_more_layers_than_the_model_has_are_refused(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    path = str(tiny_model("Llama", GROUPED, smollm2_tokenizer, tmp_path))
    assert load_reward_model(path, num_layers=2).model.config.num_hidden_layers == 2
    with pytest.raises(ConfigError, match="--layers is 3; it must be at most 2, the model's own"):
        load_reward_model(path, num_layers=3)


def test_a_model_that_shares_its_layers_is_refused(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    options = {**SMALL, "embedding_size": 32, "max_position_embeddings": 512}
    path = str(tiny_model("Albert", options, smollm2_tokenizer, tmp_path))
    with pytest.raises(ConfigError, match=r"--layers: Albert.* does not have its layers in one"):
        load_reward_model(path, num_layers=1)


@pytest.mark.parametrize("other", [{"lora_rank": 4}, {"text_regulariser": 0.1}])
def test_options_that_need_the_last_layer_are_refused(other: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--layers and --[a-z-]+ exclude each other"):
        TrainConfig(data="data", model="model", output=tmp_path / "out", layers=1, **other)
