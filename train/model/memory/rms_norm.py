"""RMS norm that saves its input and one number per row for the backward pass.

PyTorch's graph of the same formula also saves the normalised input. The backward pass here computes
it again, in one tensor of the input's size.

Dimensions: N rows; D values of a row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RmsNorm(torch.autograd.Function):
    """y = x · r · w with r = 1 / sqrt(mean(x²) + ε), for each row x (Zhang & Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return y, float32[..., N, D].

        Args:
            x: float32[..., N, D].
            weight: float32[D].
            epsilon: added to the mean of squares.
        """
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = scale.add_(epsilon).rsqrt_()  # [..., N, 1]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable  # it computes in place
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the gradients of x and w; None for a frozen w.

        If g is the gradient of y, that of w is Σ_N g · x · r, and that of x is
        r · g · w − x · r³ / D · Σ_D g · x · w.
        """
        x, weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        width = x.shape[-1]
        product = gradient * x
        rows = product.reshape(-1, width)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.mv(rows.t(), scale.reshape(-1))
        slope = torch.mv(rows, weight).reshape(scale.shape).mul_(scale**3).div_(width)
        of_x = torch.mul(gradient, weight, out=product)
        of_x.mul_(scale).addcmul_(x, slope, value=-1)
        return of_x, of_weight, None
