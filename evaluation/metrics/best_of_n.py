"""Best-of-n: the expected quality of the response that is picked among n random ones.

The n responses are drawn from the K of a ranking without replacement. The response at position i of
the order by falling reward (from 1) is picked if it is drawn and no better one is. Of the C(K, n)
draws, C(K − i, n − 1) are of this kind. So the expectation over all draws is a sum of K terms, and
nothing needs to be sampled. The shares follow from each other, because C(K, n) is too large for
float64 from K = 1,030 on: position 1 has n / K, and position i + 1 has (K − i − n + 1) / (K − i)
times the share of position i.

Dimensions: R rankings; K responses of a ranking; N values of n, 1 to K.
"""

from collections.abc import Sequence

import numpy as np

from kwise.evaluation.metrics.bootstrap import PromptBootstrap
from kwise.evaluation.metrics.labelled import Floats, labels_of, percentiles_of
from kwise.evaluation.metrics.ties import weights_of_responses
from kwise.evaluation.result import BestOfN, BestOfNPoint, EvaluatedRanking


def expected_quality(rewards_K: Floats, quality_K: Floats) -> Floats:
    """Return the expected quality of the response with the highest reward among n, float64[N].

    Equal rewards are picked with equal probability.
    """
    size = len(rewards_K)
    n_N1 = np.arange(1, size + 1)[:, None]
    position = np.arange(1, size)
    ratios = np.maximum(size - position - n_N1 + 1, 0) / (size - position)  # [N, K − 1]
    picked_NK = np.cumprod(np.concatenate([n_N1 / size, ratios], axis=1), axis=1)
    expected: Floats = weights_of_responses(picked_NK, rewards_K) @ quality_K
    return expected


def best_of_n(rankings: Sequence[EvaluatedRanking], bootstrap: PromptBootstrap) -> BestOfN:
    """Return the curve over n = 1 to the largest K of the rankings."""
    has_scores = all(ranking.scores is not None for ranking in rankings)
    quality_of = labels_of if has_scores else percentiles_of
    qualities = [quality_of(ranking) for ranking in rankings]
    by_model = [
        expected_quality(np.asarray(ranking.rewards), quality_K)
        for ranking, quality_K in zip(rankings, qualities, strict=True)
    ]
    by_label = [expected_quality(quality_K, quality_K) for quality_K in qualities]
    points = []
    for n in range(1, max(map(len, qualities)) + 1):
        has_n_R = np.asarray([len(quality_K) >= n for quality_K in qualities], dtype=np.float64)
        model_R, best_R, random_R = (
            np.asarray([values[index] if len(values) >= n else 0.0 for values in curves])
            for curves, index in ((by_model, n - 1), (by_label, n - 1), (by_label, 0))
        )
        points.append(
            BestOfNPoint(
                n=n,
                num_rankings=int(has_n_R.sum()),
                model=bootstrap.ratio(model_R, has_n_R),
                best=float(best_R.sum() / has_n_R.sum()),
                random=float(random_R.sum() / has_n_R.sum()),
            )
        )
    return BestOfN(quality="score" if has_scores else "percentile", points=tuple(points))
