"""The figures of an evaluation, from rewards and labels alone.

They can be computed again from the JSON file of an evaluation.
"""

from collections.abc import Sequence

from kwise.evaluation.metrics.accuracy import (
    accuracy_by_length,
    accuracy_by_rank_gap,
    accuracy_by_size,
    accuracy_on_all,
)
from kwise.evaluation.metrics.best_of_n import best_of_n
from kwise.evaluation.metrics.bootstrap import PromptBootstrap
from kwise.evaluation.metrics.calibration import calibration_of
from kwise.evaluation.metrics.labelled import pairs_of_all
from kwise.evaluation.metrics.rank_correlation import (
    kendall_tau,
    length_correlation,
    mean_of,
    ndcg,
)
from kwise.evaluation.result import EvaluatedRanking, Figures, Settings


def figures_of(rankings: Sequence[EvaluatedRanking], settings: Settings) -> Figures:
    """Return all figures of rankings that have a pair each; there must be at least one."""
    bootstrap = PromptBootstrap([ranking.prompt_sha256 for ranking in rankings], settings)
    pairs = pairs_of_all(rankings)
    return Figures(
        num_rankings=len(rankings),
        num_prompts=bootstrap.num_prompts,
        num_pairs=len(pairs.margin_P),
        accuracy=accuracy_on_all(pairs, bootstrap),
        by_rank_gap=accuracy_by_rank_gap(pairs, bootstrap),
        by_length=accuracy_by_length(pairs, settings.similar_length, bootstrap),
        by_size=accuracy_by_size(pairs, bootstrap),
        kendall_tau=mean_of(kendall_tau, rankings, bootstrap),
        ndcg=mean_of(ndcg, rankings, bootstrap),
        calibration=calibration_of(pairs, settings.num_bins, bootstrap),
        best_of_n=best_of_n(rankings, bootstrap),
        length_correlation=length_correlation(rankings, bootstrap),
    )
