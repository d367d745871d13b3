"""Frozen weights in four bits for training with adapters (QLoRA), through bitsandbytes.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs": the weights of linear layers
are NF4 (4-bit NormalFloat), in blocks of 64 with one scale each; the scales are quantised as well.
Every matmul dequantises its weights. The head, a pooler, embeddings, norms and adapters stay
float32.

At the end the adapters are merged into the dequantised weights, not into the original ones, because
they were trained beside the former: the rewards of the checkpoint are those with which training
ended.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install

# Parts of the names of layers behind the backbone. A checkpoint may lack them, and new layers
# cannot be quantised.
_NOT_QUANTISED = ["score", "classifier", "pooler"]


def four_bit_options(model: str) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained(model)` loads weights in four bits.

    Raises:
        ConfigError: bitsandbytes is not installed, or the model is a GGUF file, which is quantised
            already.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            f"--load-in-4bit needs the package bitsandbytes: {how_to_install('qlora')}"
        ) from None
    if model.endswith(".gguf"):
        raise ConfigError(
            "--load-in-4bit reads a Hugging Face checkpoint; the weights of a .gguf file are "
            "dequantised"
        )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=_NOT_QUANTISED,  # despite its name, for four bits too
    )
    return {"quantization_config": quantization, "device_map": {"": _device()}}


def has_four_bits(layer: nn.Module) -> bool:
    """Return whether the layer's weights are in four bits.

    The name of their class decides, because bitsandbytes may not be installed.
    """
    return type(getattr(layer, "weight", None)).__name__ == "Params4bit"


def disable_weight_packing(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights on CPUs with AVX512-BF16.

    Version 0.50 repacks them in the first pass outside training, with scales in bf16. Rewards would
    then differ from those in training, widths that are not a multiple of 64 would fail, and
    adapters would be merged into wrong weights.
    """
    for layer in model.modules():
        if has_four_bits(layer):
            layer.support_avx512bf16_for_cpu = False


def restore_new_layers(model: nn.Module) -> None:
    """Replace the four-bit layers that have no weights in four bits by plain ones.

    transformers 5 leaves a layer that the checkpoint lacks with new weights that are not quantised,
    and bitsandbytes cannot compute with it.
    """
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ != "Linear4bit":
            continue
        if getattr(layer.weight, "quant_state", None) is None:
            model.set_submodule(name, _plain(layer, layer.weight.data))


@torch.no_grad()
def fold_adapters(adapted: Any) -> None:
    """Replace every four-bit layer that has an adapter by a plain layer with the sum of both."""
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
    """Replace every four-bit layer by a plain one, so that the model is saved like any other."""
    for name, layer in list(model.named_modules()):
        if has_four_bits(layer):
            model.set_submodule(name, _plain(layer, _weight(layer)))
    del model.hf_quantizer, model.config.quantization_config
    # Only transformers 4 sets the first, and only transformers 5 the second: how it read weights in
    # four bits, which it would undo to save them.
    vars(model.config).pop("_pre_quantization_dtype", None)
    vars(model).pop("_weight_conversions", None)
    model.is_loaded_in_4bit = model.is_quantized = False


def _weight(layer: Any) -> Tensor:
    """Return the dequantised weight, float32[outputs, inputs]."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(torch.float32)


def _plain(layer: Any, weight: Tensor) -> nn.Module:
    """Return a layer of the class that the architecture uses in the place of `layer`.

    bitsandbytes replaces GPT-2's `Conv1D`, whose weights are transposed, by a linear layer as well.
    """
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
