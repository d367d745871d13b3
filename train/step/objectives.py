"""Objectives other than the default of loss.py, each with its source, and the choice among them. All see one ranking.

Write Δ = r_i − r_j for a pair whose first response is ranked better. Regression and centring depend on the rewards themselves, all
else on Δ alone.

Dimensions: K responses of a ranking.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kwise.train.options.objective_config import (
    Margin,
    ObjectiveConfig,
    ObjectiveName,
    PairWeighting,
    Ties,
)
from kwise.train.step.loss import Judged, Objective


def objective_of(config: ObjectiveConfig) -> Objective:
    """(rewards_K, what was judged) → scalar, of the rewards' dtype."""

    def objective(rewards_K: Tensor, judged: Judged) -> Tensor:
        match config.objective:
            case ObjectiveName.PAIRS:
                loss = _pairs(rewards_K, judged, config)
            case ObjectiveName.SIGMOID:
                margins, is_pair = _margins(rewards_K, judged.ranks_K)
                loss = _reduce(-torch.sigmoid(margins) * is_pair, is_pair, config)
            case ObjectiveName.PLACKETT_LUCE:
                loss = plackett_luce(rewards_K, judged.ranks_K)
            case ObjectiveName.REGRESSION:
                loss = F.mse_loss(rewards_K, judged.scores_K.to(rewards_K.dtype))
        return loss + config.centring * rewards_K.square().mean()

    return objective


def plackett_luce(rewards_K: Tensor, ranks_K: Tensor) -> Tensor:
    """−1/n Σ_k log( exp r_k / Σ_{l: rank_l ≥ rank_k} exp r_l ): each response is chosen first among those not ranked better.

    Plackett 1975, "The analysis of permutations"; ListMLE, Xia et al. 2008. Tied responses are each chosen among all of their
    rank and below (Breslow's approximation, 1974), the n of a last rank left out: they tell nothing.
    """
    is_behind_KK = ranks_K[:, None] <= ranks_K[None, :]
    among_K = rewards_K[None, :].masked_fill(~is_behind_KK, -math.inf).logsumexp(1)
    is_choice_K = ranks_K < ranks_K.max()
    return ((among_K - rewards_K) * is_choice_K).sum() / is_choice_K.sum().clamp(min=1)


def _pairs(rewards_K: Tensor, judged: Judged, config: ObjectiveConfig) -> Tensor:
    margins_KK, is_pair_KK = _margins(rewards_K, judged.ranks_K)
    margins_KK = margins_KK - _wanted(judged, config, margins_KK.dtype)
    # Each tied pair once, and no response with itself.
    is_tie_KK = torch.triu(judged.ranks_K[:, None] == judged.ranks_K[None, :], diagonal=1)
    match config.ties:
        case Ties.IGNORE:
            wrong = config.label_smoothing
            terms_KK = -(1 - wrong) * F.logsigmoid(margins_KK) - wrong * F.logsigmoid(-margins_KK)
            return _reduce(terms_KK * is_pair_KK, is_pair_KK, config)
        case Ties.RAO_KUPPER:
            theta = 1 + config.tie_strength
            wins_KK = -F.logsigmoid(margins_KK - math.log(theta))
            ties_KK = wins_KK - F.logsigmoid(-margins_KK - math.log(theta)) - math.log(theta**2 - 1)
        case Ties.DAVIDSON:
            log_nu = math.log(config.tie_strength)
            parts = torch.stack(
                [torch.zeros_like(margins_KK), -margins_KK, log_nu - margins_KK / 2]
            )
            wins_KK = parts.logsumexp(0)
            ties_KK = wins_KK - (log_nu - margins_KK / 2)
    return _reduce(wins_KK * is_pair_KK + ties_KK * is_tie_KK, is_pair_KK | is_tie_KK, config)


def _margins(rewards_K: Tensor, ranks_K: Tensor) -> tuple[Tensor, Tensor]:
    """(r_i − r_j, whether i is ranked better than j), [K, K] each."""
    return rewards_K[:, None] - rewards_K[None, :], ranks_K[:, None] < ranks_K[None, :]


def _wanted(judged: Judged, config: ObjectiveConfig, dtype: torch.dtype) -> Tensor:
    """[K, K]: the margin wanted of each pair; 0 between tied responses."""
    if config.margin is Margin.SCORES:
        scores_K = judged.scores_K.to(dtype)
        return config.margin_scale * (scores_K[:, None] - scores_K[None, :])
    ranks_K = judged.ranks_K.to(dtype)
    if config.margin is Margin.RANKS:
        return (
            config.margin_scale
            * (ranks_K[None, :] - ranks_K[:, None])
            / (ranks_K.max() - 1).clamp(min=1)
        )
    return torch.zeros_like(ranks_K)[:, None]


def _reduce(terms_KK: Tensor, counts_KK: Tensor, config: ObjectiveConfig) -> Tensor:
    total = terms_KK.sum()
    return (
        total
        if config.pair_weighting is PairWeighting.SUM
        else total / counts_KK.sum().clamp(min=1)
    )
