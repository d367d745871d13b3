"""Over the trie or padded, a pass gives the same rewards and the same gradients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kwise.train.model.layout import TrainLayout, best_layout, lay_out, read_tries, rewards_of
from kwise.train.step.losses import kwise_loss
from tests.tiny_models import GROUPED, SMALL, tiny_model


def model_of(family: str, options: dict[str, Any], tokenizer: Any, path: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        tiny_model(family, options, tokenizer, path)
    )


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma"])
def test_gradients_over_the_trie_are_those_of_36_separate_pairs(
    family: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    options = {**GROUPED, "sliding_window": None} if family == "Mistral" else GROUPED
    model = model_of(family, options, smollm2_tokenizer, tmp_path)
    assert best_layout(model) is TrainLayout.TRIE
    read_tries(model)
    random = np.random.default_rng(0)
    prompt = random.integers(3, 40_000, 30).tolist()
    sequences = [
        prompt + random.integers(3, 40_000, length).tolist()
        for length in (3, 9, 20, 1, 14, 30, 7, 11, 5)
    ]
    kwise_loss(
        rewards_of(model, lay_out(sequences, TrainLayout.TRIE, 2)), torch.arange(1, 10)
    ).backward()
    over_trie = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for better in range(9):
        for worse in range(better + 1, 9):
            tensors = lay_out([sequences[better], sequences[worse]], TrainLayout.PADDED, 2)
            (kwise_loss(rewards_of(model, tensors), torch.tensor([1, 2])) / 36).backward()
    for name, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            over_trie[name], parameter.grad, rtol=1e-4, atol=1e-4 * scale, msg=name
        )


def test_a_pass_over_the_trie_computes_each_prefix_once() -> None:
    tensors = lay_out([[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 4]], TrainLayout.TRIE, 2)
    assert tensors["input_ids"].shape == tensors["position_ids"].shape == (1, 6)
    assert tensors["last_nodes"].tolist() == [3, 5, 4]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Mistral", {**GROUPED, "sliding_window": 24}),
        ("Bert", {**SMALL, "max_position_embeddings": 512}),
    ],
)
def test_models_with_windows_and_encoders_are_padded(
    family: str, options: dict[str, Any], smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    assert best_layout(model_of(family, options, smollm2_tokenizer, tmp_path)) is TrainLayout.PADDED
