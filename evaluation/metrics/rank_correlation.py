"""The agreement of two orders of a ranking's responses, by reward and by label, as one number.

Dimensions: R rankings; K responses of a ranking.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from kwise.evaluation.metrics.bootstrap import PromptBootstrap
from kwise.evaluation.metrics.labelled import Floats, labels_of
from kwise.evaluation.metrics.ties import weights_of_responses
from kwise.evaluation.result import EvaluatedRanking, LengthCorrelation, RankMean


def kendall_tau(rewards_K: Floats, labels_K: Floats) -> float:
    """Return Kendall's tau-b (Kendall, 1945): 1 for the same order, −1 for the reverse.

    It is 0 if all rewards are equal, for which the formula has no value. The labels must differ.
    """
    if np.ptp(rewards_K) == 0:
        return 0.0
    return float(stats.kendalltau(rewards_K, labels_K).statistic)


def ndcg(rewards_K: Floats, labels_K: Floats) -> float:
    """Return the normalised discounted cumulative gain (Järvelin and Kekäläinen, 2002).

    The gain of a response is its label scaled to [0, 1] within the ranking, so the worst response
    has 0 and the best one 1. The discount at position i is 1 / log2(i + 1). Equal rewards share
    their discounts (McSherry and Najork, 2008). The labels must differ.
    """
    gains_K = (labels_K - labels_K.min()) / np.ptp(labels_K)
    discounts_1K = 1 / np.log2(np.arange(2, len(gains_K) + 2))[None]
    gained, best = (
        float(weights_of_responses(discounts_1K, order_K)[0] @ gains_K)
        for order_K in (rewards_K, labels_K)
    )
    return gained / best


def values_of(
    figure: Callable[[Floats, Floats], float], rankings: Sequence[EvaluatedRanking]
) -> Floats:
    """Return a figure of (rewards, labels) for each ranking, float64[R]."""
    return np.asarray([figure(np.asarray(r.rewards), labels_of(r)) for r in rankings])


def mean_of(
    figure: Callable[[Floats, Floats], float],
    rankings: Sequence[EvaluatedRanking],
    bootstrap: PromptBootstrap,
) -> RankMean:
    """Return the mean over rankings of a figure of (rewards, labels)."""
    values_R = values_of(figure, rankings)
    mean = bootstrap.ratio(values_R, np.ones(len(values_R)))
    return RankMean(num_rankings=len(values_R), mean=mean)


def length_correlation(
    rankings: Sequence[EvaluatedRanking], bootstrap: PromptBootstrap
) -> LengthCorrelation | None:
    """Return Spearman's correlation with length; None if it is undefined for every ranking.

    It is undefined for a ranking in which all lengths or all rewards are equal.
    """
    of_rewards_R, of_labels_R = np.zeros(len(rankings)), np.zeros(len(rankings))
    is_defined_R = np.zeros(len(rankings))
    for index, ranking in enumerate(rankings):
        lengths_K = np.asarray(ranking.lengths, dtype=np.float64)
        rewards_K = np.asarray(ranking.rewards)
        if np.ptp(lengths_K) and np.ptp(rewards_K):
            is_defined_R[index] = 1
            of_rewards_R[index] = stats.spearmanr(rewards_K, lengths_K).statistic
            of_labels_R[index] = stats.spearmanr(labels_of(ranking), lengths_K).statistic
    if not is_defined_R.any():
        return None
    return LengthCorrelation(
        num_rankings=int(is_defined_R.sum()),
        rewards=bootstrap.ratio(of_rewards_R, is_defined_R),
        labels=bootstrap.ratio(of_labels_R, is_defined_R),
    )
