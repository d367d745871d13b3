"""Rotary position embedding as ONNX's own operator (`RotaryEmbedding`, opset 23) instead of the nine nodes that tracing makes.

transformers' architectures each carry an `apply_rotary_pos_emb(q, k, cos, sin)` of their own, most of them the same. While
a graph is traced, Optimum's `PatchingSpec` puts the function below in the place of those that were measured to compute
what it computes; another one (interleaved, say) is traced as it is. It was 7 % of SmolLM2's pass in nine nodes, and is 1 %
in one, which reads and writes each row once.

Dimensions: T rows, H heads, D head size, R <= D rotated part of it.
"""

import inspect
import sys
from typing import Any

import torch
from optimum.exporters.onnx.model_patcher import PatchingSpec
from torch import Tensor

from kwise.export.graphs.attention import PLACEHOLDER_DOMAIN

_FUNCTION = "apply_rotary_pos_emb"


class _Rotary(torch.autograd.Function):
    """x [1, T, H·D], cos and sin [1, T, R/2] → [1, T, H·D]; one node in ONNX, under the placeholder domain (see trie_graph.py)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int, rotated: int) -> Tensor:
        x = x.unflatten(-1, (heads, -1))
        first, second, rest = x.split([rotated // 2, rotated // 2, x.shape[-1] - rotated], dim=-1)
        cos, sin = cos[:, :, None], sin[:, :, None]
        return torch.cat(
            [first * cos - second * sin, second * cos + first * sin, rest], dim=-1
        ).flatten(2)

    @staticmethod
    def symbolic(g: Any, x: Any, cos: Any, sin: Any, heads: int, rotated: int) -> Any:
        node = g.op(
            f"{PLACEHOLDER_DOMAIN}::RotaryEmbedding",
            x,
            cos,
            sin,
            num_heads_i=heads,
            rotary_embedding_dim_i=rotated,
        )
        return node.setType(x.type())


def rotary(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    unsqueeze_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """transformers' contract: q [1, H, T, D], k [1, G, T, D], cos and sin [1, T, R], whose halves are equal."""
    half = int(cos.shape[-1]) // 2  # a number, not a traced value
    cos, sin = cos[..., :half], sin[..., :half]

    def rotated(x: Tensor) -> Tensor:
        heads = int(x.shape[1])
        flat = _Rotary.apply(x.transpose(1, 2).flatten(2), cos, sin, heads, 2 * half)
        return flat.view(1, -1, heads, int(x.shape[3])).transpose(1, 2)

    return rotated(q), rotated(k)


def patching_specs(model: torch.nn.Module) -> list[PatchingSpec]:
    """One spec for each module that defines a part of `model` and has an equivalent function."""
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    return [
        PatchingSpec(o=module, name=_FUNCTION, custom_op=rotary)
        for module in modules
        if _is_equivalent(getattr(module, _FUNCTION, None))
    ]


def _is_equivalent(function: Any) -> bool:
    """Whether `function` rotates as `rotary` does, whole heads or a part of each: measured, not looked up by name."""
    if function is None or list(inspect.signature(function).parameters)[:4] != [
        "q",
        "k",
        "cos",
        "sin",
    ]:
        return False
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(1, 4, 3, 8, generator=generator),
        torch.randn(1, 2, 3, 8, generator=generator),
    )
    angles = torch.randn(1, 3, 4, generator=generator).repeat(1, 1, 2)
    try:
        pairs = zip(
            function(q, k, angles.cos(), angles.sin()),
            rotary(q, k, angles.cos(), angles.sin()),
            strict=True,
        )
        return all(torch.allclose(theirs, ours, atol=1e-6) for theirs, ours in pairs)
    except (RuntimeError, TypeError, ValueError):
        return False
