"""All plots of the page, by the name under which the template places them."""

from kwise.evaluation.report.plots.accuracy import accuracy_plot, scores_plot
from kwise.evaluation.report.plots.best_of_n import best_of_n_plot
from kwise.evaluation.report.plots.calibration import reliability_plot
from kwise.evaluation.report.plots.canvas import Plot
from kwise.evaluation.report.plots.rewards import length_plot, margins_plot, tau_plot
from kwise.evaluation.result import Evaluation
from kwise.evaluation.suite_result import SuiteResult

_SUBSET = "subset"


def plots_of(evaluation: Evaluation, level: str) -> dict[str, Plot]:
    """Return the plots of an evaluation; `level` is that of the intervals, "95%"."""
    figures, rankings = evaluation.figures, evaluation.rankings
    plots = {
        "accuracy": accuracy_plot(figures, level),
        "margins": margins_plot(rankings),
        "tau": tau_plot(rankings),
        "best_of_n": best_of_n_plot(figures.best_of_n, level),
        "reliability": reliability_plot(figures.calibration),
        "length": length_plot(rankings),
    }
    return plots | (_plots_of_suite(evaluation.suite, level) if evaluation.suite else {})


def _plots_of_suite(suite: SuiteResult, level: str) -> dict[str, Plot]:
    """Return the plots of the scores that have a value: the main ones, and those of subsets."""
    parts = {
        "scores": [score for score in suite.scores if score.level != _SUBSET],
        "subset_scores": [score for score in suite.scores if score.level == _SUBSET],
    }
    return {
        name: scores_plot(name.replace("_", "-"), f"Scores of {suite.title}", shown, level)
        for name, scores in parts.items()
        if (shown := [(score.name, score.estimate) for score in scores if score.estimate])
    }
