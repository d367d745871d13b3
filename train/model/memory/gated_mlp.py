"""The end of a gated MLP, down(silu(gate) · up), that saves `gate` and `up` for the backward pass.

PyTorch's graph of the same formula also saves silu(gate) and the product. They are nearly half of
what the MLP of a SmolLM2 layer saves. The backward pass here computes both again.

Dimensions: N rows; I values of a row inside the MLP; D values of a row outside.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_silu_backward = torch.ops.aten.silu_backward


class GatedDown(torch.autograd.Function):
    """y = (silu(gate) · up) Wᵀ, the output of SwiGLU (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        """Return y, [..., N, D], of the type of `gate`.

        Args:
            gate: [..., N, I], float32, or bfloat16 under autocast.
            up: the same shape and type.
            weight: float32[D, I].
        """
        ctx.save_for_backward(gate, up, weight)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    @once_differentiable  # it computes in place
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of `gate`, `up` and `weight`; None for a frozen weight."""
        gate, up, weight = ctx.saved_tensors
        (gradient,) = gradients
        activation = F.silu(gate)
        of_weight = None
        if ctx.needs_input_grad[2]:
            product = (activation * up).reshape(-1, up.shape[-1])
            of_weight = gradient.reshape(-1, gradient.shape[-1]).t() @ product
            of_weight = of_weight.to(weight.dtype)
        of_product = gradient @ weight.to(gradient.dtype)
        of_up = activation.mul_(of_product)
        return _silu_backward(of_product.mul_(up), gate), of_up, of_weight
