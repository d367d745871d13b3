"""The order of responses by reward, in which equal rewards share their positions evenly.

Dimensions: K responses of a ranking; N rows of weights.
"""

import numpy as np
from scipy import stats

from kwise.evaluation.metrics.labelled import Floats


def weights_of_responses(weights_NK: Floats, rewards_K: Floats) -> Floats:
    """Return the weight of each response in each row, float64[N, K].

    `weights_NK[:, i]` belongs to position i of the order by falling reward. Responses with equal
    rewards occupy positions in a random order, so each gets the mean of the weights there.
    """
    first_K = stats.rankdata(-rewards_K, method="min").astype(np.int64) - 1
    end_K = stats.rankdata(-rewards_K, method="max").astype(np.int64)
    sums = np.concatenate(
        [np.zeros((len(weights_NK), 1)), np.cumsum(weights_NK, axis=1)], axis=1
    )  # [N, K + 1]
    shared: Floats = (sums[:, end_K] - sums[:, first_K]) / (end_K - first_K)
    return shared
