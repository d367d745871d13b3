"""The pairs of responses with different ranks, and which of them rewards order rightly.

The evaluation after training and `kwise eval` count pairs with these functions. NumPy suffices, so
that rewards of an artifact or a server are evaluated without torch.

Dimensions: K responses of a ranking; P pairs of responses with different ranks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDEST_GAP = 3


def pairs_of(ranks: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the better and of the worse response of each pair, int64[P] each.

    Responses with equal ranks are not a pair.
    """
    ranks_K = np.asarray(ranks)
    better_P, worse_P = np.nonzero(ranks_K[:, None] < ranks_K[None, :])
    return better_P, worse_P


def shares_right(margins_P: NDArray[Any]) -> NDArray[np.float64]:
    """Return 1 for a pair whose better response has the higher reward, 1/2 for equal rewards.

    Args:
        margins_P: the reward of the better response minus that of the worse one.
    """
    return (np.sign(margins_P) + 1.0) / 2.0


def rank_gap_name(gap: int) -> str:
    """Return the name of the part of the pairs whose ranks differ by `gap`.

    Pairs of neighbouring ranks are the hard ones.
    """
    return f"ranks {gap} apart" if gap < _WIDEST_GAP else f"ranks {_WIDEST_GAP} or more apart"
