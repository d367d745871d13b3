"""Let the norms and the MLPs of a model save less for the backward pass.

A layer of SmolLM2 saves 40 instead of 64 MB for a ranking of 1,408 rows, at the same speed. Most
families of transformers have a copy of Llama's RMS norm and gated MLP, so both are recognised by
their bytecode. All others, such as Gemma's norm, stay as they are.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from kwise.train.model.memory.gated_mlp import GatedDown
from kwise.train.model.memory.rms_norm import RmsNorm

_SILU = (nn.SiLU, type(ACT2FN["silu"]))


def save_less(model: nn.Module) -> None:
    """Replace the `forward` of each RMS norm and gated MLP of `model` by one that saves less.

    Rewards and gradients stay the same, except for rounding. A module that already has a `forward`
    of its own, such as a hook of accelerate, stays as it is.
    """
    for module in model.modules():
        if "forward" in vars(module):
            continue
        if _has_code_of(module, LlamaRMSNorm):
            module.forward = partial(_rms_norm, module)
        elif _has_code_of(module, LlamaMLP):
            module.forward = partial(_gated_mlp, module)


def _has_code_of(module: nn.Module, reference: type[nn.Module]) -> bool:
    """Return whether the class of `module` has the `forward` of `reference`, by the bytecode."""
    code, expected = _bytecode(type(module).forward), _bytecode(reference.forward)
    return code is not None and code == expected


def _bytecode(function: Any) -> tuple[Any, ...] | None:
    """Return the bytecode of `function`, and the names and constants that it uses.

    None for a decorated function, because its bytecode is that of the decorator.
    """
    code = getattr(function, "__code__", None)
    if code is None or hasattr(function, "__wrapped__"):
        return None
    return code.co_code, code.co_names, code.co_consts


def _rms_norm(norm: nn.Module, hidden_states: Tensor) -> Tensor:
    """Return the output of a norm with the code of Llama's."""
    weight = norm.weight
    if hidden_states.dtype is weight.dtype is torch.float32:
        return RmsNorm.apply(hidden_states, weight, norm.variance_epsilon)
    return type(norm).forward(norm, hidden_states)


def _gated_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """Return the output of an MLP with the code of Llama's."""
    down = mlp.down_proj
    if _is_plain_linear(down) and type(mlp.act_fn) in _SILU and not _has_hooks(mlp.act_fn):
        return GatedDown.apply(mlp.gate_proj(x), mlp.up_proj(x), down.weight)
    return type(mlp).forward(mlp, x)


def _is_plain_linear(layer: nn.Module) -> bool:
    """Return whether the output of `layer` is the product with its weight and nothing else.

    An adapter of PEFT or a matrix in four bits is another class.
    """
    return type(layer) is nn.Linear and layer.bias is None and not _has_hooks(layer)


def _has_hooks(module: nn.Module) -> bool:
    """Return whether a call of `module` runs more than the `forward` of its class."""
    return "forward" in vars(module) or any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )
