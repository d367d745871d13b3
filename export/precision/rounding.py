"""Which way to round each weight: by what comes out of its product on real text, not by which is nearer.

Channels of a product's rows go together (of SmolLM2's most variance lies along a few directions), so an error in one
weight can be made up for in those that are still to be rounded. That is GPTQ (Frantar et al. 2023, algorithm 1), with the
channels of largest variance first. With SmolLM2's weights in bf16, errors of products on other texts are 0.55 times as
large as with the nearest weights, those of rewards half as large, and of 277 clear pairs none is ordered otherwise than in fp32.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.export.parity import ParityError
from kwise.export.precision.calibration import second_moments
from kwise.export.precision.half import dtype_of, half_of
from kwise.export.precision.int8 import levels_of, scales_of
from kwise.export.precision.matmuls import Rounded, WeightKey, columns_of, weight_key
from kwise.export.precision.rotation import Float32, Rotation
from kwise.export.weights import Rewriting

# Added to the variances, relative to their mean, as the paper does: directions that few texts have shown count for little.
_DAMPING = 0.01
# Columns that are rounded before their errors are carried on to all the others, in one product.
_BLOCK = 128


def round_weights(
    source: Path,
    precisions: Sequence[Precision],
    session: GraphSession,
    batches: Sequence[Sequence[EncodedSequence]],
    directory: Path,
) -> dict[Precision, Rounded]:
    """The weights of all products in each precision: levels for int8. They lie in files of `directory`, for a model's may not
    fit into memory twice.

    Args:
        source: the fp32 graph, which is `session`'s. batches: the text.

    Raises:
        ParityError: a weight is too large for a precision.
    """
    graph = Rewriting(source, source)
    rounded: dict[Precision, dict[WeightKey, NDArray[Any]]] = {
        precision: {} for precision in precisions
    }
    seen: set[WeightKey] = set()
    for products, moments in second_moments(graph, source, session, batches):
        # A weight that multiplies several factors is rounded for the first.
        new = {
            weight_key(node): columns_of(graph, node)
            for node in products
            if weight_key(node) not in seen
        }
        if not new:
            continue
        seen |= new.keys()
        for precision in precisions:
            solve = _levels if precision is Precision.INT8 else partial(_halves, precision)
            for key, matrix in solve(new, moments).items():
                path = directory / f"{precision.value}.{len(rounded[precision])}"
                matrix.tofile(path)
                rounded[precision][key] = np.memmap(path, matrix.dtype, "r", shape=matrix.shape)
    return dict(rounded)


def _halves(
    precision: Precision, weights: Mapping[WeightKey, Float32], moments: Float32
) -> dict[WeightKey, NDArray[Any]]:
    for (name, _), matrix in weights.items():
        half_of(name, matrix, precision)  # whether they fit
    dtype = dtype_of(precision)
    most = float(ml_dtypes.finfo(dtype).max)
    nearest = compensated(
        np.concatenate([*weights.values()]),
        moments,
        lambda column: column.clip(-most, most).astype(dtype),
    )
    return _split(nearest.astype(dtype), weights)


def _levels(
    weights: Mapping[WeightKey, Float32], moments: Float32
) -> dict[WeightKey, NDArray[Any]]:
    turn = Rotation(len(moments)).rotated
    turned = turn(np.concatenate([*weights.values()]))
    scale = scales_of(turned)
    nearest = compensated(
        turned,
        turn(turn(moments.astype(np.float64)).T),
        lambda column: levels_of(column, scale[:, 0]) * scale[:, 0],
    )
    return _split(levels_of(nearest, scale), weights)


def _split(
    joined: NDArray[Any], weights: Mapping[WeightKey, Float32]
) -> dict[WeightKey, NDArray[Any]]:
    stops = np.cumsum([len(matrix) for matrix in weights.values()])
    return dict(zip(weights, np.split(joined, stops[:-1]), strict=True))


def compensated(
    weights: Float32, moments: NDArray[Any], nearest: Callable[[Float32], Float32]
) -> Float32:
    """Rounded weights that make x·W nearly what it was.

    Args:
        weights: [N, K], a row for each output channel.
        moments: [K, K], the mean or sum of xᵀ·x over rows x of text; of any scale.
        nearest: [N] → [N], each channel's nearest number that the precision has.

    Returns:
        [N, K], of such numbers.
    """
    order, factor = _factor(moments)
    left = np.ascontiguousarray(weights.T[order])  # [K, N]: what is rounded together lies together
    rounded = np.empty_like(left)
    for begin in range(0, len(left), _BLOCK):
        end = min(begin + _BLOCK, len(left))
        errors = np.empty_like(left[begin:end])
        for i in range(begin, end):
            rounded[i] = nearest(left[i])
            errors[i - begin] = (left[i] - rounded[i]) / factor[i, i]
            left[i + 1 : end] -= np.outer(factor[i, i + 1 : end], errors[i - begin])
        left[end:] -= factor[begin:end, end:].T @ errors
    result = np.empty_like(rounded)
    result[order] = rounded
    return np.ascontiguousarray(result.T)


def _factor(moments: NDArray[Any]) -> tuple[NDArray[Any], Float32]:
    """(the order of channels, the upper Cholesky factor [K, K] of the inverse of their moments in it)."""
    order = np.argsort(-np.diag(moments), kind="stable")
    ordered = moments[np.ix_(order, order)].astype(np.float64)
    variances = np.diag(ordered).copy()
    positive = variances > 0
    mean = variances[positive].mean() if positive.any() else 1.0
    variances[~positive] = mean  # a channel that is always zero: its weights do not matter
    for damping in (_DAMPING, 10 * _DAMPING, 100 * _DAMPING):
        ordered[np.diag_indices_from(ordered)] = variances + damping * mean
        try:
            return order, np.linalg.cholesky(np.linalg.inv(ordered)).T.astype(np.float32)
        except np.linalg.LinAlgError:  # float32 sums are off by more than the smallest variances
            continue
    raise ParityError(
        "the moments of a product's rows have no inverse: are its values finite and of one scale?"
    )
