"""Frozen weights in four bits, beside which adapters are trained, through bitsandbytes: QLoRA.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs": the weights of linear layers as NF4 (4-bit NormalFloat), in
blocks of 64 with a scale each, the scales quantised once more; they are dequantised for every product. What lies behind the
language model, embeddings, norms and adapters stay float32.

At the end the adapters are merged into the dequantised weights, not into those that were read, for beside these they were trained:
the rewards of the checkpoint are those that training ended with.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kwise.errors import ConfigError

# Parts of the names of what lies behind a language model: a checkpoint may lack it, and random weights cannot be quantised.
_BEHIND = ["score", "classifier", "pooler"]


def four_bit_options(model: str) -> dict[str, Any]:
    """What `from_pretrained(model)` is to be given.

    Raises:
        ConfigError: bitsandbytes is not installed, or the model is a file of quantised weights already.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "--load-in-4bit needs the package bitsandbytes: pip install 'kwise[qlora]'"
        ) from None
    if model.endswith(".gguf"):
        raise ConfigError(
            "--load-in-4bit reads a Hugging Face checkpoint; the weights of a .gguf file are dequantised"
        )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=_BEHIND,  # the option's name is older than four bits
    )
    return {"quantization_config": quantization, "device_map": {"": _device()}}


def has_four_bits(layer: nn.Module) -> bool:
    """By the name of the weight's class, for bitsandbytes may not be there."""
    return type(getattr(layer, "weight", None)).__name__ == "Params4bit"


def leave_weights_alone(model: nn.Module) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes 0.50 packs the weights anew at the first pass that is no training, with scales in bf16:
    rewards differ from those trained with, widths that are no multiple of 64 fail, and what is merged later would be wrong."""
    for layer in model.modules():
        if has_four_bits(layer):
            layer.support_avx512bf16_for_cpu = False


@torch.no_grad()
def fold_adapters(adapted: Any) -> None:
    """Put a plain layer, dequantised and with its adapter added, in the place of every adapted layer of four bits."""
    from peft.tuners.lora import LoraLayer

    for name, layer in [
        (name, layer) for name, layer in adapted.named_modules() if isinstance(layer, LoraLayer)
    ]:
        if has_four_bits(base := layer.get_base_layer()):
            adapted.set_submodule(
                name, _plain(base, _weight(base) + layer.get_delta_weight("default"))
            )


@torch.no_grad()
def dequantise(model: PreTrainedModel) -> None:
    """Make every layer a plain one, and the model one that saves as such."""
    for name, layer in list(model.named_modules()):
        if has_four_bits(layer):
            model.set_submodule(name, _plain(layer, _weight(layer)))
    del model.hf_quantizer, model.config.quantization_config, model.config._pre_quantization_dtype
    model.is_loaded_in_4bit = model.is_quantized = False


def _weight(layer: Any) -> Tensor:
    """float32[outputs, inputs]."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(torch.float32)


def _plain(layer: Any, weight: Tensor) -> nn.Module:
    """What the architecture has in the place of `layer`. GPT-2's `Conv1D`, whose weights are the other way round, has become a
    linear layer of four bits as well."""
    if issubclass(layer.source_cls, Conv1D):
        plain: nn.Module = Conv1D(layer.out_features, layer.in_features)
        weight = weight.T.contiguous()
    else:
        plain = nn.Linear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
        )
    plain.weight, plain.bias = nn.Parameter(weight), layer.bias
    return plain


def _device() -> Any:
    accelerator = torch.accelerator.current_accelerator()
    return (
        "cpu"
        if accelerator is None
        else torch.device(accelerator.type, torch.accelerator.current_device_index())
    )
