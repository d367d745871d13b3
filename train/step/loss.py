"""The default objective, and a step's loss from those of its rankings. One reward each, however many pairs.

Dimensions: K responses of a ranking; B rankings of a batch; S = ΣK sequences of a batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class NotFinite(ArithmeticError):
    """Training went where float32 ends: a loss or a weight is infinite or not a number. The message says at which step."""


class Judged(NamedTuple):
    """What people said of K responses: ranks_K int64[K], 1 the best, equal means tied; scores_K float32[K], higher is better,
    not a number where ranks were given instead."""

    ranks_K: Tensor
    scores_K: Tensor


Objective = Callable[[Tensor, Judged], Tensor]
"""(rewards_K, judged) → scalar."""


def kwise_loss(rewards_K: Tensor, ranks_K: Tensor) -> Tensor:
    """−1/C(K,2) Σ log σ(r_w − r_l) over the pairs (w, l) where w is ranked better than l.

    Ouyang et al. 2022, "Training language models to follow instructions with human feedback", eq. 1. All pairs of a
    prompt are one element of a batch: K rewards give C(K,2) terms (K = 9: 9 forward passes, not 72), and a ranking
    cannot be met again, in part, in a later step, which is what made the model overfit there.

    A tie gives no pair. The divisor is then the number of pairs that count instead of C(K,2), so that rankings weigh
    the same in a step however many ties they have. Without any pair (K = 1, or all tied) the loss is 0, with a
    gradient of 0.

    Args:
        rewards_K: float[K].
        ranks_K: int64[K], 1 is the best, equal means tied.

    Returns:
        A scalar of the rewards' dtype. It depends on differences of rewards only.
    """
    margins_KK = rewards_K[:, None] - rewards_K[None, :]
    is_pair_KK = ranks_K[:, None] < ranks_K[None, :]
    # Masking by multiplication needs no synchronisation with the device; log σ is finite for all finite margins.
    terms_KK = F.logsigmoid(margins_KK) * is_pair_KK
    return -terms_KK.sum() / is_pair_KK.sum().clamp(min=1)


def ranking_losses(
    rewards_S: Tensor, judged_S: Judged, group_sizes: list[int], objective: Objective
) -> Tensor:
    """[B]: `objective` of each of the B rankings whose rewards lie one after another; `group_sizes[b]` is the K of b."""
    groups = zip(
        rewards_S.split(group_sizes), *(part.split(group_sizes) for part in judged_S), strict=True
    )
    return torch.stack(
        [objective(rewards_K, Judged(ranks_K, scores_K)) for rewards_K, ranks_K, scores_K in groups]
    )
