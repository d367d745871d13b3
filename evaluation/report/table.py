"""The tables of evaluations and comparisons for a terminal."""

from kwise.evaluation.estimate import Estimate
from kwise.evaluation.report.aligned import aligned_lines, interval_text
from kwise.evaluation.report.suite_table import suite_lines
from kwise.evaluation.result import Accuracy, Evaluation, Figures, ModelComparison


def table_lines(evaluation: Evaluation) -> list[str]:
    """Return the lines of the report."""
    figures = evaluation.figures
    level = f"{evaluation.settings.confidence:.0%}"
    return [
        *_head(evaluation),
        "",
        *([*suite_lines(evaluation.suite, level), ""] if evaluation.suite else []),
        *_accuracies(figures, level),
        "",
        *_numbers(figures, level),
        "",
        *_best_of_n(figures, level),
    ]


def comparison_lines(comparison: ModelComparison) -> list[str]:
    """Return the lines of the report of a comparison."""
    level = f"{comparison.settings.confidence:.0%}"
    rows = [
        (
            FIGURE_NAMES[difference.figure],
            f"{difference.a:.3f}",
            f"{difference.b:.3f}",
            f"{difference.difference.value:+.3f}",
            interval_text(difference.difference, "{:+.3f}"),
            "" if difference.p_value is None else f"{difference.p_value:.3g}",
        )
        for difference in comparison.differences
    ]
    lines = [comparison.conclusion]
    if comparison.num_only_a or comparison.num_only_b:
        lines.append(
            f"{comparison.num_only_a:,} rankings were scored for A only and "
            f"{comparison.num_only_b:,} for B only; they do not count"
        )
    return [*lines, "", *aligned_lines(("figure", "A", "B", "A - B", level, "p"), rows)]


FIGURE_NAMES = {
    "accuracy": "pairwise accuracy",
    "kendall_tau": "Kendall's tau-b",
    "ndcg": "NDCG",
    "nll": "negative log likelihood",
}


def _head(evaluation: Evaluation) -> list[str]:
    model, data, figures = evaluation.model, evaluation.data, evaluation.figures
    lines = [
        f"{model.name} ({model.kind}, {model.precision}, {model.fingerprint[:12]}) on {data.name}: "
        f"{figures.num_rankings:,} rankings of {figures.num_prompts:,} prompts, "
        f"{figures.num_pairs:,} pairs"
    ]
    if data.num_tied:
        lines.append(f"{_are(data.num_tied)} one tie and in no figure")
    if data.left_out:
        num, what = len(data.left_out), "could not be scored"
        lines.append(
            f"1 ranking {what} and is in no figure"
            if num == 1
            else f"{num:,} rankings {what} and are in no figure"
        )
    return lines


def _are(num_rankings: int) -> str:
    return "1 ranking is" if num_rankings == 1 else f"{num_rankings:,} rankings are"


def _accuracies(figures: Figures, level: str) -> list[str]:
    parts: list[Accuracy] = [figures.accuracy, *figures.by_rank_gap, *figures.by_length]
    if len(figures.by_size) > 1:
        parts += figures.by_size
    rows = [
        (
            part.name,
            f"{part.num_pairs:,}",
            f"{part.accuracy.value:.1%}",
            interval_text(part.accuracy, "{:.1%}"),
            f"{part.longer_wins:.1%}",
        )
        for part in parts
    ]
    return aligned_lines(("pairs", "number", "accuracy", level, "longer wins"), rows)


def _numbers(figures: Figures, level: str) -> list[str]:
    calibration = figures.calibration
    rows = [
        ("Kendall's tau-b", *_estimate(figures.kendall_tau.mean)),
        ("NDCG", *_estimate(figures.ndcg.mean)),
        ("negative log likelihood", *_estimate(calibration.nll)),
        ("calibration error (ECE)", f"{calibration.ece:.3f}", ""),
    ]
    if calibration.temperature is not None:
        rows += [
            ("fitted temperature", f"{calibration.temperature:.3g}", ""),
            ("  negative log likelihood with it", f"{calibration.scaled_nll:.3f}", ""),
            ("  calibration error with it", f"{calibration.scaled_ece:.3f}", ""),
        ]
    if figures.length_correlation is not None:
        rows += [
            ("correlation with length", *_estimate(figures.length_correlation.rewards)),
            ("  of the labels", *_estimate(figures.length_correlation.labels)),
        ]
    return aligned_lines(("figure", "value", level), rows)


def _best_of_n(figures: Figures, level: str) -> list[str]:
    rows = [
        (
            str(point.n),
            f"{point.num_rankings:,}",
            f"{point.model.value:.3f}",
            interval_text(point.model, "{:.3f}"),
            f"{point.best:.3f}",
            f"{point.random:.3f}",
        )
        for point in figures.best_of_n.points
    ]
    header = ("best of n", "rankings", figures.best_of_n.quality, level, "best", "random")
    return aligned_lines(header, rows)


def _estimate(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.3f}", interval_text(estimate, "{:.3f}")
