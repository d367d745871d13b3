"""Rotate rows so that a few large channels are spread over many, before they are quantised.

Language models have a few channels many times as large as the others. They make a row's scale so
large that the other channels are rounded to almost nothing. A product does not change if both
factors are rotated by an orthogonal R, x·W = (x·R)·(Rᵀ·W), and R spreads each large channel over
all others (Ashkboos et al. 2024, QuaRot, https://arxiv.org/abs/2404.00456).

R is a Kronecker product of two cosine transforms, so a row of a·b channels costs 2·a·b·(a + b)
operations and not 2·(a·b)², cheap enough for each pass. Figures are in docs/precisions.md.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
_MAX_SIDE = 64


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation of rows with `width` channels, in blocks of a·b channels.

    Each block, read as a matrix [a, b], becomes its transpose [b, a] transformed along both sides.
    a and b are at most 64: as many channels in a block as possible, for as little work as possible.
    """

    width: int

    @property
    def sides(self) -> tuple[int, int]:
        """a and b."""
        divisors = [n for n in range(1, _MAX_SIDE + 1) if self.width % n == 0]
        pairs = [(a, b) for a in divisors for b in divisors if a <= b and self.width % (a * b) == 0]
        return max(pairs, key=lambda pair: (pair[0] * pair[1], -sum(pair)))

    @property
    def matrices(self) -> tuple[Float32, Float32]:
        """The transforms [a, a] and [b, b]."""
        a, b = self.sides
        return cosine_transform(a), cosine_transform(b)

    def rotated(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return x [rows, width] times R, in x's dtype."""
        first, second = self.matrices
        blocks = x.reshape(-1, len(first), len(second)) @ second
        return (blocks.transpose(0, 2, 1) @ first).reshape(x.shape)


def cosine_transform(size: int) -> Float32:
    """Return the orthogonal discrete cosine transform [size, size]; entries at most √(2/size)."""
    n = np.arange(size)
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (n[:, None] + 0.5) * n / size)
    matrix[:, 0] = np.sqrt(1 / size)
    return matrix.astype(np.float32)
