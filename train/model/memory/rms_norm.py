"""RMS norm that saves its input and one number per row for the backward pass.

PyTorch's graph of the same formula also saves the normalised input. The backward pass here computes
it again, in one tensor of the input's size.

Dimensions: N rows; D values of a row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kwise.train.model.memory.blocks import blocks


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
        y, scale = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1)
        for some_x, some_y, scales in blocks(x, y, scale):
            torch.linalg.vector_norm(some_x, dim=-1, keepdim=True, out=scales)
            scales.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
            torch.mul(some_x, scales, out=some_y).mul_(weight)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable  # it computes in place
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the gradients of x and w; None for a frozen w.

        If g is the gradient of y, that of w is Σ_N g · x · r, and that of x is
        r · g · w − x · r³ / D · Σ_D g · x · w.
        """
        x, weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight)
        for some_x, scales, some_gradient, some_of_x in blocks(x, scale, gradient, of_x):
            product = torch.mul(some_gradient, some_x, out=some_of_x).reshape(-1, x.shape[-1])
            of_weight.addmv_(product.t(), scales.reshape(-1))
            slope = torch.mv(product, weight).reshape(scales.shape)
            slope.mul_(scales**3).div_(x.shape[-1])
            torch.mul(some_gradient, weight, out=some_of_x)
            some_of_x.mul_(scales).addcmul_(some_x, slope, value=-1)
        return of_x, of_weight if ctx.needs_input_grad[1] else None, None
