"""The longest conversation of a model is what it can really read."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from kwise.train.model.limits import model_max_tokens

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_labels": 1,
}
NO_LIMIT = SimpleNamespace(model_max_length=int(1e30))


def model_of(family: str, **options: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**SMALL, **options)
    return getattr(transformers, f"{family}ForSequenceClassification")(config).eval()


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "MPNet", "Camembert"])
def test_positions_behind_the_padding_index_are_not_counted_as_tokens(family: str) -> None:
    """RoBERTa states 514 and reads 512: the 513th token was an index error during training."""
    model = model_of(family, max_position_embeddings=34, pad_token_id=1)
    limit = model_max_tokens(model, NO_LIMIT)
    assert limit == 32
    with torch.inference_mode():
        model(torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 5))


@pytest.mark.parametrize("family", ["Bert", "Llama", "GPT2"])
def test_other_models_read_as_many_tokens_as_they_state(family: str) -> None:
    assert model_max_tokens(model_of(family, max_position_embeddings=34), NO_LIMIT) == 34


def test_the_tokenizers_limit_counts_where_it_is_smaller() -> None:
    assert (
        model_max_tokens(
            model_of("Llama", max_position_embeddings=34), SimpleNamespace(model_max_length=20)
        )
        == 20
    )


def test_a_model_without_positions_states_no_limit() -> None:
    config = transformers.BloomConfig(
        vocab_size=64, hidden_size=32, n_layer=1, n_head=2, num_labels=1
    )
    assert model_max_tokens(transformers.BloomForSequenceClassification(config), NO_LIMIT) is None
