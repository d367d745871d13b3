"""The operations of a training step, counted by hand and by torch."""

from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForSequenceClassification

from kwise.benchmarks.training.operations import TorchPeak, cost_of_training
from kwise.benchmarks.training.train_once import StepTimes
from kwise.train.model.batch.layout import TrieLayout
from tests.tiny_models import GROUPED, tiny_model


def test_the_matmuls_with_weights_are_those_that_torch_counts(
    smollm2_tokenizer: Any, tmp_path: Any
) -> None:
    model = LlamaForSequenceClassification.from_pretrained(
        tiny_model("Llama", GROUPED, smollm2_tokenizer, tmp_path)
    )
    sequences = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 4]]
    layout = TrieLayout()
    layout.prepare(model)
    counter = FlopCounterMode(display=False)
    with counter:
        model(**layout.lay_out(sequences)).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    cost = cost_of_training(model)
    num_rows, num_ends = 6, 3
    head = 3 * 2 * num_ends * model.config.hidden_size
    # The embeddings are trained, so all matmuls have both gradients.
    assert counted == num_rows * cost.per_row + head
    # Depths 1 to 4 of the first sequence, 3 of the second, 5 of the third.
    per_pair = 3 * 4 * model.config.num_hidden_layers * model.config.hidden_size
    arrays = [np.array(sequence, np.int64) for sequence in sequences]
    assert cost.of(arrays) == num_rows * cost.per_row + 18 * per_pair


def test_steps_are_timed_between_the_lines_that_report_them() -> None:
    times = StepTimes(lambda: 1e9)
    for line in ("layout: trie", "step 1/3  …", "training: step 1/3", "step 2/3  …", "step 3/3  …"):
        times(line)
    assert 0 < times.mean_step_s() < 60
    assert times.share_of_peak(2e9) > times.share_of_peak(1e9) > 0


def test_the_rate_of_a_matmul_is_positive() -> None:
    assert TorchPeak()() > 0
