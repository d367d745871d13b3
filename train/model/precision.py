"""What runs in bfloat16: the backbone's matrix products, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import convert_outputs_to_fp32
from transformers import PreTrainedModel

from kwise.train.options.config import Precision


def choose_precision(asked: Precision, device: torch.device) -> Precision:
    """`asked`, or for AUTO what `device` is fast at."""
    if asked is not Precision.AUTO:
        return asked
    return Precision.BF16 if has_fast_bf16(device) else Precision.FP32


@contextmanager
def bf16_backbone(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Within it the backbone's matrix products on `device` run in bfloat16; weights, residual stream and head stay float32.

    Autocast over the whole model, as `TrainingArguments(bf16=True)` does it, also rounds the rewards to bfloat16: with 8
    significant bits, rewards near 4 are 1/32 apart, coarser than the margins that are learnt from.
    """
    backbone = model.base_model
    autocast = torch.autocast(device.type, dtype=torch.bfloat16)
    # The head does not run under autocast, so whatever it reads, a pooler's output for instance, has to be float32.
    own = vars(backbone).get("forward")  # of this one model: accelerate's hooks are put there
    backbone.forward = convert_outputs_to_fp32(autocast(backbone.forward))
    try:
        yield
    finally:
        if own is None:
            del backbone.forward  # the class's own method again
        else:
            backbone.forward = own


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones on `device`.

    On a CPU that takes AVX512-BF16 or AMX (SmolLM2-135M, 6 sequences of 110 tokens, forward and backward, 2 cores with AMX:
    1.1 s against 1.95 s in float32); without them PyTorch emulates bfloat16, slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
