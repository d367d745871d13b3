"""The labels of a ranking as numbers, and what is computed of them for several figures.

Dimensions: R rankings; K responses of a ranking; P pairs of all rankings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kwise.evaluation.result import EvaluatedRanking
from kwise.train.report.pairs import pairs_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def labels_of(ranking: EvaluatedRanking) -> Floats:
    """Return the scores of the responses, or their negated ranks: higher is better."""
    if ranking.scores is not None:
        return np.asarray(ranking.scores, dtype=np.float64)
    return -np.asarray(ranking.ranks, dtype=np.float64)


def percentiles_of(ranking: EvaluatedRanking) -> Floats:
    """Return the share of the other responses that each one is better than; a tie is one half."""
    ranks_K = stats.rankdata(-np.asarray(ranking.ranks), method="average")
    percentiles: Floats = (ranks_K - 1) / (len(ranks_K) - 1)
    return percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The pairs of all rankings.

    Attributes:
        num_rankings: R.
        ranking_P: the index of the ranking that a pair belongs to.
        margin_P: the reward of the better response minus that of the worse one.
        rank_gap_P: the rank of the worse response minus that of the better one.
        size_P: the K of the ranking.
        better_length_P, worse_length_P: in characters.
    """

    num_rankings: int
    ranking_P: Integers
    margin_P: Floats
    rank_gap_P: Integers
    size_P: Integers
    better_length_P: Integers
    worse_length_P: Integers

    def per_ranking(self, values_P: NDArray[np.float64] | NDArray[np.bool_]) -> Floats:
        """Return the sum of the values over the pairs of each ranking, float64[R]."""
        sums: Floats = np.bincount(
            self.ranking_P, weights=values_P.astype(np.float64), minlength=self.num_rankings
        ).astype(np.float64)
        return sums


def pairs_of_all(rankings: Sequence[EvaluatedRanking]) -> Pairs:
    """Return the pairs of the rankings, in order."""
    parts = []
    for index, ranking in enumerate(rankings):
        better, worse = pairs_of(ranking.ranks)
        ranks, lengths = np.asarray(ranking.ranks), np.asarray(ranking.lengths)
        rewards = np.asarray(ranking.rewards, dtype=np.float64)
        parts.append(
            (
                np.full(len(better), index),
                rewards[better] - rewards[worse],
                ranks[worse] - ranks[better],
                np.full(len(better), len(ranks)),
                lengths[better],
                lengths[worse],
            )
        )
    index_P, margin, gap, size, better_length, worse_length = map(
        np.concatenate, zip(*parts, strict=True)
    )
    return Pairs(
        num_rankings=len(rankings),
        ranking_P=index_P,
        margin_P=margin,
        rank_gap_P=gap,
        size_P=size,
        better_length_P=better_length,
        worse_length_P=worse_length,
    )
