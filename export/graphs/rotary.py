"""Rotary position embedding as ONNX's operator `RotaryEmbedding` (opset 23).

Each of transformers' architectures has its own `apply_rotary_pos_emb(q, k, cos, sin)`, and most of
them are the same. While a graph is traced, Optimum's `PatchingSpec` replaces those that were
measured to compute the same as `rotary` below. A different one, for example interleaved, is traced
as it is. In nine nodes the rotation took 7 % of SmolLM2's pass; in one, which reads and writes each
row once, it takes 1 %.

Dimensions: T rows, H query heads, G key/value heads, D head size, R <= D rotated part of a head.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kwise.export.graphs.attention import PLACEHOLDER_DOMAIN
from kwise.export.graphs.optimum_exporter import PatchingSpec

_FUNCTION = "apply_rotary_pos_emb"


class _Rotary(torch.autograd.Function):
    """Rotate x [1, T, H·D] by cos and sin [1, T, R/2] → [1, T, H·D].

    One node in ONNX, under the placeholder domain (see trie_graph.py).
    """

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
    """Rotate queries and keys, with the signature of transformers' `apply_rotary_pos_emb`.

    q [1, H, T, D], k [1, G, T, D]; cos and sin [1, T, R], with two equal halves.
    """
    half = int(cos.shape[-1]) // 2  # an integer, not a traced value
    cos, sin = cos[..., :half], sin[..., :half]

    def rotated(x: Tensor) -> Tensor:
        heads = int(x.shape[1])
        flat = _Rotary.apply(x.transpose(1, 2).flatten(2), cos, sin, heads, 2 * half)
        return flat.view(1, -1, heads, int(x.shape[3])).transpose(1, 2)

    return rotated(q), rotated(k)


@contextmanager
def short_longrope(model: torch.nn.Module) -> Iterator[None]:
    """Let rotary embeddings of type longrope keep their short factors while a graph is traced.

    transformers 5 writes the frequencies of each call into a buffer, which the TorchScript exporter
    cannot trace. `rope_limit` keeps artifacts below the length at which the frequencies change.
    """
    modules = [part for part in model.modules() if getattr(part, "rope_type", None) == "longrope"]
    try:
        for module in modules:
            module.register_buffer("inv_freq", module.original_inv_freq.clone(), persistent=False)
            module.rope_type = "default"
        yield
    finally:
        for module in modules:
            module.rope_type = "longrope"


def patching_specs(model: torch.nn.Module) -> list[PatchingSpec]:
    """Return a patch for each Python module of `model`'s parts that has an equivalent function."""
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    return [
        PatchingSpec(o=module, name=_FUNCTION, custom_op=rotary)
        for module in modules
        if _is_equivalent(getattr(module, _FUNCTION, None))
    ]


def _is_equivalent(function: Any) -> bool:
    """Return whether `function` computes the same as `rotary`.

    This is measured: the function's name says nothing.
    """
    if function is None:
        return False
    if list(inspect.signature(function).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 3, 8, generator=generator)
    k = torch.randn(1, 2, 3, 8, generator=generator)
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
