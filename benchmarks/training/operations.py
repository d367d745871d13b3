"""The floating-point operations of a training step, and the matmul rate that torch reaches.

Operations are counted as for serving (model/flops.py): each distinct prefix of the conversations
once through the matmuls with weights, each visible pair of tokens once through attention. The
backward pass has two matmuls for each one of the forward pass, so a step has three times the
operations of a reward. What gradient checkpointing repeats does not count.
"""

import statistics
import time

import torch
from torch import nn
from transformers import PreTrainedModel

from kwise.benchmarks.model.flops import PEAK_SIZE, GraphCost


def cost_of_training(model: PreTrainedModel) -> GraphCost:
    """Return the operations of forward and backward of a decoder with plain attention."""
    config = model.config
    weights = sum(
        layer.weight.numel() for layer in model.base_model.modules() if isinstance(layer, nn.Linear)
    )
    head_width = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    per_pair = 4 * config.num_hidden_layers * config.num_attention_heads * head_width
    return GraphCost(per_row=3 * 2 * weights, per_pair=3 * per_pair)


class TorchPeak:
    """Measures the rate of a 2048³ matmul of torch in float32. A call returns operations/s."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (PEAK_SIZE, PEAK_SIZE)
        self._x, self._y = (torch.randn(shape, generator=generator) for _ in range(2))
        self._product = torch.empty(shape)
        self()  # the first call warms up

    def __call__(self) -> float:
        """Return the median of three measurements, made now."""
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            torch.mm(self._x, self._y, out=self._product)
            seconds.append(time.perf_counter() - started)
        return 2 * PEAK_SIZE**3 / statistics.median(seconds)
