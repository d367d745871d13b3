"""What a config.json states about rewards is used, told, or a reason to refuse the checkpoint."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kwise.errors import ConfigError
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.four_bit import disable_weight_packing
from kwise.train.model.reward_model import load_reward_model
from tests.edited_checkpoints import copy_checkpoint
from tests.tiny_models import PADDED, tiny_model

MEAN_POOLING = {"AutoModelForSequenceClassification": "modeling_mean.LlamaForMeanRewardModel"}


@pytest.mark.parametrize("to_train", [True, False])
@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {"architectures": ["LlamaForMeanRewardModel"], "auto_map": MEAN_POOLING},
            r"names code of its own, modeling_mean\.LlamaForMeanRewardModel, which kwise does not",
        ),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            "is a LlamaForTokenClassification, whose head is not that of a reward model",
        ),
        (
            {"architectures": ["MistralForSequenceClassification"]},
            "is a MistralForSequenceClassification.*; expected is a LlamaForSequenceClassification",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with gptq; kwise reads"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "quantised with bitsandbytes in eight bits",
        ),
        ({"mean": 0.5, "std": 0.0}, r"config\.json has std 0\.0; it must be at least 1e-30"),
        ({"mean": "0.5", "std": 1.0}, r"config\.json has mean '0\.5'; it must be a finite number"),
        ({"model_type": "mamba"}, "no sequence classification for models of type mamba"),
    ],
)
def test_statements_with_which_rewards_could_be_wrong_are_refused(
    llama: Path, tmp_path: Path, stated: dict[str, Any], message: str, to_train: bool
) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", **stated)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint("--model", str(path), to_train=to_train)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {"architectures": ["SomeRewardModel"]},
            "names the class SomeRewardModel, which transformers does not have, and "
            "LlamaForSequenceClassification may give other rewards",
        ),
        ({"auto_map": MEAN_POOLING}, "names code of its own for rewards, modeling_mean.Llama"),
    ],
)
def test_training_may_start_from_a_reward_model_whose_rewards_are_not_known(
    llama: Path, tmp_path: Path, stated: dict[str, Any], message: str
) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", **stated)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint("CHECKPOINT", str(path), to_train=False)
    (note,) = load_checkpoint("--model", str(path), to_train=True).notes
    assert "LlamaForSequenceClassification" in note


@pytest.mark.parametrize(
    ("stated", "note"),
    [
        (
            {
                "architectures": ["LlamaForSequenceClassification"],
                "auto_map": {"AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"},
            },
            "code of its own (auto_map: modeling_own.LlamaForCausalLM), which is not run",
        ),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            "sentence_transformers applies Sigmoid to the model's output; a reward is the output "
            "without it",
        ),
        (
            {"rope_interleaved": True, "reward_scale": 3, "unset": None},
            "LlamaConfig does not know reward_scale, rope_interleaved",
        ),
        (
            {"id2label": {"0": "A", "1": "B"}},
            "config.json states 2 labels, and the head has one output",
        ),
        ({"pad_token_id": 99}, "pad_token_id 99 has no row in the 99 embeddings; not used"),
    ],
)
def test_statements_that_are_not_used_are_told(
    llama: Path, tmp_path: Path, stated: dict[str, Any], note: str
) -> None:
    loaded = load_checkpoint(
        "CHECKPOINT", str(copy_checkpoint(llama, tmp_path / "copy", **stated)), to_train=False
    )
    assert len(loaded.notes) == 1 and note in loaded.notes[0]
    assert loaded.model.config.num_labels == 1


def test_an_ordinary_reward_model_has_no_notes(llama: Path) -> None:
    assert not load_checkpoint("CHECKPOINT", str(llama), to_train=False).notes


def test_a_head_of_one_output_needs_no_labels_in_the_config(llama: Path, tmp_path: Path) -> None:
    """transformers takes two labels for granted, and reports a size mismatch."""
    path = copy_checkpoint(llama, tmp_path / "copy", without=("id2label", "label2id"))
    loaded = load_checkpoint("CHECKPOINT", str(path), to_train=False)
    assert not loaded.notes and loaded.model.score.weight.shape == (1, 16)


def test_mean_and_std_of_rewards_are_read(llama: Path, tmp_path: Path) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", mean=1.5, std=2)
    statements = load_checkpoint("CHECKPOINT", str(path), to_train=False).statements
    assert (statements.reward_mean, statements.reward_std) == ((1.5,), (2.0,))


def test_training_leaves_out_what_is_not_true_of_the_trained_model(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = copy_checkpoint(
        tiny_checkpoint,
        tmp_path / "copy",
        mean=1.5,
        std=2.0,
        auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    )
    loaded = load_reward_model(str(path))
    assert "mean and std describe rewards before training" in loaded.notes[-1]
    loaded.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not {"mean", "std", "auto_map"} & saved.keys()


def test_weights_in_four_bits_are_dequantised(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.2,
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "plain")
    quantised = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "plain",
        dtype=torch.float32,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["score"]
        ),
    )
    disable_weight_packing(quantised)
    quantised.save_pretrained(tmp_path / "nf4")
    loaded = load_checkpoint("CHECKPOINT", str(tmp_path / "nf4"), to_train=False)
    assert loaded.notes == ("the weights are stored in four bits and were dequantised",)
    input_ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        expected = quantised(input_ids).logits
        torch.testing.assert_close(loaded.model.eval()(input_ids).logits, expected)
    loaded.model.save_pretrained(tmp_path / "saved")
    assert not load_checkpoint("CHECKPOINT", str(tmp_path / "saved"), to_train=False).notes


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"return_dict": False}, "return_dict"),
        ({"torchscript": True, "output_hidden_states": True}, "torchscript, output_hidden_states"),
        ({"chunk_size_feed_forward": 4}, "chunk_size_feed_forward"),
        (
            {"_attn_implementation": "flash_attention_2"},
            r"_attn_implementation \(flash_attention_2\)",
        ),
    ],
)
def test_how_a_model_computes_is_reset_and_told(
    stated: dict[str, Any], named: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """The first ended in a traceback; of the last two, training and export refused both.

    BERT computes its feed-forward layers in chunks if that is stated; seven tokens are not a
    multiple of four.
    """
    path = tiny_model(*PADDED["bert"], smollm2_tokenizer, tmp_path / "bert")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    rewards = []
    for number, statements in enumerate(({}, stated)):
        copy = copy_checkpoint(path, tmp_path / str(number), **statements)
        loaded = load_checkpoint("--model", str(copy), to_train=True)
        with torch.inference_mode():
            rewards.append(float(loaded.model.eval()(ids).logits[0, 0]))
    assert rewards[0] == rewards[1]
    assert re.search(f"^config.json: {named}: not used, which changes no", loaded.notes[-1])
