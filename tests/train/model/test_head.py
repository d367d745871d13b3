"""The reward head is the layer that transformers calls so, and nothing else of its shape."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import LlamaForSequenceClassification, PreTrainedModel

from kwise.errors import ConfigError
from kwise.train.model.head import reward_head

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def model_of(family: str, num_labels: int = 1, **options: Any) -> PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(
        num_labels=num_labels, vocab_size=99, pad_token_id=0, **options
    )
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, f"{family}ForSequenceClassification")(config)
    return model


@pytest.mark.parametrize(
    ("family", "options", "name"),
    [
        ("Llama", SMALL, "score"),
        ("GPT2", {"n_embd": 64, "n_layer": 1, "n_head": 4}, "score"),
        ("Bert", SMALL, "classifier"),
        ("DistilBert", {"dim": 64, "n_layers": 1, "n_heads": 4, "hidden_dim": 96}, "classifier"),
        ("ModernBert", {**SMALL, "reference_compile": False}, "classifier"),
        ("Roberta", SMALL, "classifier.out_proj"),
        ("Electra", SMALL, "classifier.out_proj"),
        ("T5", {"d_model": 64, "num_layers": 1, "num_heads": 4}, "classification_head.out_proj"),
        ("XLNet", {"d_model": 64, "n_layer": 1, "n_head": 4}, "logits_proj"),
        ("XLM", {"emb_dim": 64, "n_layers": 1, "n_heads": 4}, "sequence_summary.summary"),
    ],
)
def test_the_head_is_found_by_name(family: str, options: dict[str, Any], name: str) -> None:
    assert reward_head(model_of(family, **options))[0] == name


def test_another_layer_with_one_output_is_not_the_head() -> None:
    """The last layer with one output was taken for the head."""
    model = model_of("Llama", **SMALL)
    model.confidence = nn.Linear(64, 1)
    assert reward_head(model) == ("score", model.score)


def test_a_head_with_several_outputs_is_refused() -> None:
    with pytest.raises(ConfigError, match="its head score has 3 outputs; it must have 1"):
        reward_head(model_of("Llama", num_labels=3, **SMALL))


def test_a_model_without_a_head_names_what_it_has() -> None:
    class Renamed(LlamaForSequenceClassification):
        pass

    model = model_of("Llama", **SMALL)
    model.__class__ = Renamed
    model.judge = model.score
    del model.score
    with pytest.raises(
        ConfigError, match=r"Renamed has no reward head: .* behind its backbone are: judge"
    ):
        reward_head(model)
