"""The precision of a pass: with bf16, only the backbone's matmuls run in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import convert_outputs_to_fp32
from transformers import PreTrainedModel

from kwise.train.options.config import Precision


def choose_precision(asked: Precision, device: torch.device) -> Precision:
    """Return `asked`; for AUTO, bf16 if `device` is fast at it, else fp32."""
    if asked is not Precision.AUTO:
        return asked
    return Precision.BF16 if has_fast_bf16(device) else Precision.FP32


@contextmanager
def bf16_backbone(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Run the matmuls of the backbone on `device` in bfloat16.

    Weights, residual stream and head stay float32.

    Autocast over the whole model, as with `TrainingArguments(bf16=True)`, would round the rewards
    as well: bfloat16 has 8 significant bits, so rewards near 4 would be multiples of 1/32, which is
    coarser than the differences that training uses.
    """
    backbone = model.base_model
    autocast = torch.autocast(device.type, dtype=torch.bfloat16)
    # The head runs without autocast, so its input (a pooler's output, for instance) must be
    # float32.
    own = vars(backbone).get("forward")  # an attribute of this model alone: accelerate's hook
    backbone.forward = convert_outputs_to_fp32(autocast(backbone.forward))
    try:
        yield
    finally:
        if own is None:
            del backbone.forward  # restores the class's method
        else:
            backbone.forward = own


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether matmuls are faster in bfloat16 than in float32 on `device`.

    A CPU needs AVX512-BF16 or AMX (SmolLM2-135M, 6 sequences of 110 tokens, forward and backward, 2
    cores with AMX: 1.1 s instead of 1.95 s). Without them PyTorch emulates bfloat16 and is slower
    than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
