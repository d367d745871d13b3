"""The loss of a ranking, for each objective of options/objectives.py, and the losses of a batch.

Every function sees the rewards of one ranking: one reward per response, however many pairs they
form. Write Δ = r_i − r_j for two responses of which i is ranked better. `regression_loss` and
centring depend on the rewards themselves, all else on Δ alone.

Dimensions: K responses of a ranking; B rankings of a batch; S = ΣK responses of a batch; H heads.
"""

import math
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kwise.train.options.objectives import Margin, ObjectiveConfig, PairWeighting, objective_of


class NotFinite(ArithmeticError):
    """A loss or a weight is infinite or NaN. The message says at which step."""


class Labels(NamedTuple):
    """The ranks and scores that people gave to K responses.

    Attributes:
        ranks_K: int64[K], 1 is the best, equal means tied.
        scores_K: float32[K], higher is better; NaN if the responses have ranks only.
    """

    ranks_K: Tensor
    scores_K: Tensor


Loss = Callable[[Tensor, Labels, ObjectiveConfig], Tensor]
"""(rewards_K, labels, config) → scalar of the rewards' dtype: what an `Objective` names."""

RankingLoss = Callable[[Tensor, Labels], Tensor]
"""(rewards_K, labels) → scalar: a `Loss` with its options."""


def ranking_loss(config: ObjectiveConfig) -> RankingLoss:
    """Return the function that training minimises, centring included."""
    loss: Loss = pkgutil.resolve_name(objective_of(config).loss)

    def with_centring(rewards_K: Tensor, labels: Labels) -> Tensor:
        return loss(rewards_K, labels, config) + config.centring * rewards_K.square().mean()

    return with_centring


def batch_losses(
    rewards_SH: Tensor,
    labels_S: Labels,
    group_sizes: list[int],
    learning_BH: Tensor,
    loss: RankingLoss,
) -> Tensor:
    """Return the loss of each ranking of a batch, float[B]: the mean over its learning heads.

    Args:
        rewards_SH: the rewards of the B rankings by each head, one ranking after another.
        labels_S: their labels, in the same order.
        group_sizes: the K of each ranking; their sum is S.
        learning_BH: 1 for the heads that learn from a ranking, else 0; at least one is 1.
        loss: applied to each ranking and head.
    """
    parts = (part.split(group_sizes) for part in (rewards_SH, *labels_S))
    groups = zip(*parts, strict=True)
    losses_BH = torch.stack(
        [
            torch.stack([loss(rewards_K, Labels(*labels)) for rewards_K in rewards_KH.unbind(1)])
            for rewards_KH, *labels in groups
        ]
    )
    return (losses_BH * learning_BH).sum(1) / learning_BH.sum(1)


def kwise_loss(
    rewards_K: Tensor,
    ranks_K: Tensor,
    *,
    margin_KK: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    pair_weighting: PairWeighting = PairWeighting.MEAN,
) -> Tensor:
    """Return −1/C(K,2) Σ log σ(r_i − r_j) over the pairs (i, j) where i is ranked better than j.

    Ouyang et al. 2022, "Training language models to follow instructions with human feedback", eq.
    1. All pairs of a prompt are one element of a batch: K rewards give C(K,2) terms (for K = 9, 36
    terms from 9 forward passes, not from 72). Pairs of one ranking never occur in different steps,
    which made the model of that paper overfit.

    A tie gives no pair. The divisor is the number of pairs, not C(K,2), so that a ranking has the
    same weight in a step however many ties it has. Without any pair (K = 1, or all responses tied)
    the loss and its gradient are 0.

    Args:
        rewards_K: float[K].
        ranks_K: int64[K], 1 is the best, equal means tied.
        margin_KK: what is subtracted from r_i − r_j, see `Margin`; broadcast to [K, K].
        label_smoothing: the fraction ε of pairs assumed to be labelled the wrong way round: a term
            is (1 − ε) log σ(Δ) + ε log σ(−Δ).
        pair_weighting: the mean over pairs, as above, or their sum.

    Returns:
        A scalar of the rewards' dtype. It depends on differences of rewards only.
    """
    difference_KK, is_pair_KK = _pairs(rewards_K, ranks_K)
    difference_KK = difference_KK - margin_KK
    terms_KK = F.logsigmoid(difference_KK)
    if label_smoothing:
        reversed_KK = F.logsigmoid(-difference_KK)
        terms_KK = (1 - label_smoothing) * terms_KK + label_smoothing * reversed_KK
    return _reduce(-terms_KK, is_pair_KK, pair_weighting)


def pairs_loss(rewards_K: Tensor, labels: Labels, config: ObjectiveConfig) -> Tensor:
    """Return `kwise_loss` with the margin, smoothing and weighting of `config`."""
    return kwise_loss(
        rewards_K,
        labels.ranks_K,
        margin_KK=_target_margins(labels, config, rewards_K.dtype),
        label_smoothing=config.label_smoothing,
        pair_weighting=config.pair_weighting,
    )


def rao_kupper_loss(rewards_K: Tensor, labels: Labels, config: ObjectiveConfig) -> Tensor:
    """Return the negative log-likelihood of the pairs, ties included, in Rao and Kupper's model.

    With π = exp(reward) and θ = 1 + tie_strength: P(i > j) = π_i / (π_i + θ π_j) and
    P(i = j) = (θ² − 1) π_i π_j / ((π_i + θ π_j)(π_j + θ π_i)). Rao and Kupper 1967, "Ties in
    paired-comparison experiments".
    """
    theta = 1 + config.tie_strength
    difference_KK, is_pair_KK = _pairs(rewards_K, labels.ranks_K)
    difference_KK = difference_KK - _target_margins(labels, config, rewards_K.dtype)
    wins_KK = -F.logsigmoid(difference_KK - math.log(theta))
    losses_KK = -F.logsigmoid(-difference_KK - math.log(theta))
    ties_KK = wins_KK + losses_KK - math.log(theta**2 - 1)
    return _reduce_with_ties(wins_KK, ties_KK, is_pair_KK, labels, config)


def davidson_loss(rewards_K: Tensor, labels: Labels, config: ObjectiveConfig) -> Tensor:
    """Return the negative log-likelihood of the pairs, ties included, in Davidson's model.

    With π = exp(reward) and ν = tie_strength, each outcome is proportional to π_i (i is better),
    π_j, or ν √(π_i π_j) (a tie). Davidson 1970, "On extending the Bradley-Terry model to
    accommodate ties in paired comparison experiments".
    """
    log_nu = math.log(config.tie_strength)
    difference_KK, is_pair_KK = _pairs(rewards_K, labels.ranks_K)
    difference_KK = difference_KK - _target_margins(labels, config, rewards_K.dtype)
    # log of each outcome's share, divided by π_i
    log_tie_KK = log_nu - difference_KK / 2
    outcomes_KK = torch.stack([torch.zeros_like(difference_KK), -difference_KK, log_tie_KK])
    wins_KK = outcomes_KK.logsumexp(0)
    return _reduce_with_ties(wins_KK, wins_KK - log_tie_KK, is_pair_KK, labels, config)


def sigmoid_loss(rewards_K: Tensor, labels: Labels, config: ObjectiveConfig) -> Tensor:
    """Return −σ(Δ), reduced over the pairs."""
    difference_KK, is_pair_KK = _pairs(rewards_K, labels.ranks_K)
    return _reduce(-torch.sigmoid(difference_KK), is_pair_KK, config.pair_weighting)


def plackett_luce_loss(rewards_K: Tensor, labels: Labels, _: ObjectiveConfig) -> Tensor:
    """Return −1/n Σ_k log( exp r_k / Σ_{l: rank_l ≥ rank_k} exp r_l ).

    The best response is chosen among all, the next one among the rest, and so on. Plackett 1975,
    "The analysis of permutations"; ListMLE, Xia et al. 2008. Each of several tied responses is
    chosen among all responses of its rank and below (Breslow's approximation, 1974). The n
    responses are those that are not of the last rank, which has no choice left.
    """
    ranks_K = labels.ranks_K
    is_left_KK = ranks_K[:, None] <= ranks_K[None, :]
    log_total_K = rewards_K[None, :].masked_fill(~is_left_KK, -math.inf).logsumexp(1)
    is_choice_K = ranks_K < ranks_K.max()
    terms_K = (log_total_K - rewards_K) * is_choice_K
    return terms_K.sum() / is_choice_K.sum().clamp(min=1)


def regression_loss(rewards_K: Tensor, labels: Labels, _: ObjectiveConfig) -> Tensor:
    """Return the mean of (reward − score)²."""
    return F.mse_loss(rewards_K, labels.scores_K.to(rewards_K.dtype))


def _pairs(rewards_K: Tensor, ranks_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return r_i − r_j, float[K, K], and whether i is ranked better than j, bool[K, K]."""
    differences_KK = rewards_K[:, None] - rewards_K[None, :]
    return differences_KK, ranks_K[:, None] < ranks_K[None, :]


def _target_margins(labels: Labels, config: ObjectiveConfig, dtype: torch.dtype) -> Tensor | float:
    """Return the margin of each pair, dtype[K, K], 0 between tied responses; or 0 for all pairs."""
    match config.margin:
        case Margin.NONE:
            return 0.0
        case Margin.RANKS:
            ranks_K = labels.ranks_K.to(dtype)
            differences_KK = ranks_K[None, :] - ranks_K[:, None]
            return config.margin_scale * differences_KK / (ranks_K.max() - 1).clamp(min=1)
        case Margin.SCORES:
            scores_K = labels.scores_K.to(dtype)
            return config.margin_scale * (scores_K[:, None] - scores_K[None, :])


def _reduce(terms_KK: Tensor, counts_KK: Tensor, weighting: PairWeighting) -> Tensor:
    """Return the mean or the sum of the terms where `counts_KK` is True, 0 if there are none."""
    # Masking by multiplication needs no synchronisation with the device; log σ is finite for all
    # finite margins.
    total = (terms_KK * counts_KK).sum()
    return total if weighting is PairWeighting.SUM else total / counts_KK.sum().clamp(min=1)


def _reduce_with_ties(
    wins_KK: Tensor, ties_KK: Tensor, is_pair_KK: Tensor, labels: Labels, config: ObjectiveConfig
) -> Tensor:
    """Return the mean or the sum over pairs, each tied pair counted once."""
    is_tied_KK = labels.ranks_K[:, None] == labels.ranks_K[None, :]
    is_tie_KK = torch.triu(is_tied_KK, diagonal=1)  # above the diagonal: no response with itself
    terms_KK = wins_KK * is_pair_KK + ties_KK * is_tie_KK
    return _reduce(terms_KK, is_pair_KK | is_tie_KK, config.pair_weighting)
