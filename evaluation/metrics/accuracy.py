"""Pairwise accuracy: on all pairs, and on parts of them.

Each part has the accuracy of the rule "the longer response is better" beside it. People and
language models prefer longer answers, so a reward model that has learned length alone looks good on
many data sets (Singhal et al., 2023, https://arxiv.org/abs/2310.03716).

Dimensions: P pairs of all rankings.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kwise.evaluation.metrics.bootstrap import PromptBootstrap
from kwise.evaluation.metrics.labelled import Pairs
from kwise.evaluation.result import Accuracy
from kwise.train.report.pairs import rank_gap_name, shares_right

ALL = "all pairs"
BETTER_LONGER, SIMILAR, BETTER_SHORTER = "better is longer", "similar lengths", "better is shorter"


def accuracy_on_all(pairs: Pairs, bootstrap: PromptBootstrap) -> Accuracy:
    """Return the accuracy on all pairs, of which there must be at least one."""
    return _accuracy(ALL, pairs, np.ones(len(pairs.margin_P), dtype=bool), bootstrap)


def accuracy_by_rank_gap(pairs: Pairs, bootstrap: PromptBootstrap) -> tuple[Accuracy, ...]:
    """Return the accuracy by the difference of ranks, small differences first."""
    names_P = np.asarray([rank_gap_name(gap) for gap in pairs.rank_gap_P.tolist()])
    return tuple(
        _accuracy(name, pairs, names_P == name, bootstrap) for name in sorted(set(names_P.tolist()))
    )


def accuracy_by_size(pairs: Pairs, bootstrap: PromptBootstrap) -> tuple[Accuracy, ...]:
    """Return the accuracy by the number of responses of the ranking."""
    return tuple(
        _accuracy(f"K = {size}", pairs, pairs.size_P == size, bootstrap)
        for size in sorted(set(pairs.size_P.tolist()))
    )


def accuracy_by_length(
    pairs: Pairs, similar_length: float, bootstrap: PromptBootstrap
) -> tuple[Accuracy, ...]:
    """Return the accuracy where the better response is longer, similar in length, and shorter.

    Args:
        similar_length: see `Settings.similar_length`.
    """
    return tuple(
        _accuracy(name, pairs, is_in_P, bootstrap)
        for name, is_in_P in _length_parts(pairs, similar_length)
        if is_in_P.any()
    )


def _length_parts(pairs: Pairs, similar_length: float) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    better_P, worse_P = pairs.better_length_P, pairs.worse_length_P
    is_longer_P, is_shorter_P = (
        better_P > similar_length * worse_P,
        (worse_P > similar_length * better_P),
    )
    yield BETTER_LONGER, is_longer_P
    yield SIMILAR, ~is_longer_P & ~is_shorter_P
    yield BETTER_SHORTER, is_shorter_P


def _accuracy(
    name: str, pairs: Pairs, is_in_P: NDArray[np.bool_], bootstrap: PromptBootstrap
) -> Accuracy:
    right_P = shares_right(pairs.margin_P) * is_in_P
    longer_wins_P = shares_right(pairs.better_length_P - pairs.worse_length_P)
    return Accuracy(
        name=name,
        num_pairs=int(is_in_P.sum()),
        accuracy=bootstrap.ratio(pairs.per_ranking(right_P), pairs.per_ranking(is_in_P)),
        longer_wins=float(longer_wins_P[is_in_P].mean()),
    )
