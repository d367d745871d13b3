"""Both layouts give the same gradients, and a model that cannot run over the trie says why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from kwise.train.checkpoint.transformers_versions import IS_TRANSFORMERS_5
from kwise.train.model.architecture.layout_choice import choose_layout
from kwise.train.model.architecture.probe import Probe
from kwise.train.model.batch.layout import PaddedLayout, TrieLayout, rewards_of
from kwise.train.step.losses import kwise_loss
from tests.tiny_models import GROUPED, SMALL, TRIE, tiny_model


def model_of(family: str, options: dict[str, Any], tokenizer: Any, path: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        tiny_model(family, options, tokenizer, path)
    )


# Keys of 24 values per head, values of 16.
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 2,
}


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "DeepseekV3"])
def test_gradients_over_the_trie_are_those_of_36_separate_pairs(
    family: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "Mistral": {"sliding_window": None},
        "DeepseekV3": {**LATENT, "head_dim": 8},
    }
    options = {**GROUPED, **changes.get(family, {})}
    model = model_of(family, options, smollm2_tokenizer, tmp_path)
    layout, padded = choose_layout(model, 2), PaddedLayout(2)
    assert layout == TrieLayout()
    layout.prepare(model)
    random = np.random.default_rng(0)
    prompt = random.integers(3, 40_000, 30).tolist()
    lengths = (3, 9, 20, 1, 14, 30, 7, 11, 5)
    sequences = [prompt + random.integers(3, 40_000, length).tolist() for length in lengths]
    kwise_loss(rewards_of(model, layout.lay_out(sequences)), torch.arange(1, 10)).backward()
    over_trie = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for better in range(9):
        for worse in range(better + 1, 9):
            tensors = padded.lay_out([sequences[better], sequences[worse]])
            (kwise_loss(rewards_of(model, tensors), torch.tensor([1, 2])) / 36).backward()
    for name, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            over_trie[name], parameter.grad, rtol=1e-4, atol=1e-4 * scale, msg=name
        )


def test_a_pass_over_the_trie_computes_each_prefix_once() -> None:
    tensors = TrieLayout().lay_out([[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 4]])
    assert tensors["input_ids"].shape == tensors["position_ids"].shape == (1, 6)
    assert tensors["last_nodes"].tolist() == [3, 5, 4]


def small_model(family: str, options: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=99, num_labels=1, pad_token_id=0, **options
    )
    return getattr(transformers, f"{family}ForSequenceClassification")(config)


@pytest.mark.parametrize("name", [name for name in TRIE if "sliding_window" not in TRIE[name][1]])
def test_every_architecture_that_can_runs_over_the_trie(name: str) -> None:
    assert choose_layout(small_model(*TRIE[name]), 0) == TrieLayout()


def test_a_model_that_uses_the_interface_without_declaring_it_runs_over_the_trie() -> None:
    """`_supports_attention_backend` is False."""
    options = {"n_embd": 64, "n_layer": 2, "n_head": 4}
    assert choose_layout(small_model("GPTBigCode", options), 0) == TrieLayout()


def test_a_model_that_counts_padding_tokens_inside_a_text_does_not_run_over_the_trie() -> None:
    """BioGPT reads the reward as many tokens before the end as the text has padding tokens."""
    probe = Probe(special=(0,), vocab_size=99)
    layout = choose_layout(small_model("BioGpt", SMALL), 0, probe)
    assert layout == PaddedLayout(0)
    assert str(layout).startswith("padded, because in a trie batch its rewards differ from those")


GPT_NEO = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global"], 2]],
}


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("Mistral", {**GROUPED, "sliding_window": 24}, "its attention has a sliding window of 24"),
        (
            "MiniMax",
            {
                **GROUPED,
                "layer_types": ["linear_attention", "full_attention"],
                "num_local_experts": 2,
            },
            "it has layers of type linear_attention",
        ),
        (
            "Bloom",
            {"hidden_size": 64, "n_layer": 2, "n_head": 4},
            "BloomModel takes no position_ids",
        ),
        ("Bert", SMALL, "its reward head, classifier, does not read the last hidden state alone"),
        ("GPTNeo", GPT_NEO, "the attention of GPTNeoModel does not go through transformers' Att"),
        (
            "Zamba",
            {
                **GROUPED,
                "num_hidden_layers": 10,  # transformers 5 wants two layers that share weights
                "mamba_dt_rank": 4,
                "n_mamba_heads": 2,
                "use_mamba_kernels": False,
            },
            "it has layers of type hybrid" if IS_TRANSFORMERS_5 else "ZambaModel has recurrent",
        ),
    ],
)
def test_a_model_that_cannot_run_over_the_trie_is_padded_and_says_why(
    family: str, options: dict[str, Any], reason: str
) -> None:
    model = small_model(family, options)
    attention = model.config._attn_implementation
    layout = choose_layout(model, 0)
    assert layout == PaddedLayout(0) and layout.reason is not None
    assert layout.reason.startswith(reason) and str(layout) == f"padded, because {layout.reason}"
    assert model.config._attn_implementation == attention, "as it was"


def test_a_model_that_names_no_backbone_is_padded() -> None:
    """Gemma 3 with images had the prefix "", which made the whole model its own `base_model`.

    transformers 5 gives it a prefix.
    """
    images = {
        **SMALL,
        "num_hidden_layers": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config={**GROUPED, "vocab_size": 99}, vision_config=images, num_labels=1
    )
    model = transformers.Gemma3ForSequenceClassification(config)
    assert choose_layout(model, 0).reason == (
        "its attention uses sliding_window"
        if IS_TRANSFORMERS_5
        else "Gemma3ForSequenceClassification does not say which of its modules is the backbone"
    )


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, NotImplementedError])
def test_a_bug_in_a_models_forward_is_not_taken_for_a_reason(
    error: type[Exception], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every exception was caught, and the model trained padded, several times slower."""
    model = LlamaForSequenceClassification.from_pretrained(tiny_checkpoint)
    plain = model.model.forward

    def broken(input_ids: Any, position_ids: Any = None, **_: Any) -> Any:
        if position_ids is not None:
            raise error("a bug")
        return plain(input_ids)

    monkeypatch.setattr(model.model, "forward", broken)
    with pytest.raises(error, match="a bug"):
        choose_layout(model, 0)


def test_a_model_whose_states_differ_over_the_trie_is_padded(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaForSequenceClassification.from_pretrained(tiny_checkpoint)
    plain = model.model.forward

    def ignoring(input_ids: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return plain(input_ids, **kwargs)

    monkeypatch.setattr(model.model, "forward", ignoring)
    assert choose_layout(model, 2).reason == (
        "its hidden states over a trie differ from those of whole sequences"
    )
