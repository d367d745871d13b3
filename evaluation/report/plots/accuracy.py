"""Plots of accuracies and scores with their intervals, one row per part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import PercentFormatter

from kwise.evaluation.estimate import Estimate
from kwise.evaluation.report.plots.canvas import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    Canvas,
    Plot,
    in_page_style,
)
from kwise.evaluation.result import Accuracy, Figures

_ROW_IN, _FRAME_IN = 0.27, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    label: str
    estimate: Estimate
    beside: float | None = None


@in_page_style
def accuracy_plot(figures: Figures, level: str) -> Plot:
    """Return the accuracy on all pairs and on parts of them, beside the rule "longer wins"."""
    parts: list[Accuracy] = [figures.accuracy, *figures.by_rank_gap, *figures.by_length]
    if len(figures.by_size) > 1:
        parts += figures.by_size
    canvas = Canvas(
        "accuracy",
        "Pairwise accuracy",
        f"{figures.accuracy.accuracy.value:.1%} on all pairs. The table below has all values.",
        height_in=_FRAME_IN + 0.2 + _ROW_IN * len(parts),
    )
    _draw(
        canvas,
        [_Row(label=part.name, estimate=part.accuracy, beside=part.longer_wins) for part in parts],
        ("the model", 'the rule "the longer response is better"'),
        chance=0.5,
    )
    return Plot(
        svg=canvas.svg(),
        caption="Each row is a part of the pairs. The dot is the share of pairs in which the model "
        f"gives the better response the higher reward; the line through it is its {level} "
        "interval. The diamond is the share that the length of the response alone gets right. A "
        "dot on the dashed line is chance. A model that is good only where the diamond is far to "
        "the right may have learned length.",
    )


@in_page_style
def scores_plot(name: str, title: str, scores: Sequence[tuple[str, Estimate]], level: str) -> Plot:
    """Return scores between 0 and 1 with their intervals; there must be at least one."""
    canvas = Canvas(
        name,
        title,
        "; ".join(f"{label}: {estimate.value:.1%}" for label, estimate in scores),
        height_in=_FRAME_IN + _ROW_IN * len(scores),
    )
    _draw(canvas, [_Row(label=label, estimate=estimate) for label, estimate in scores])
    return Plot(
        svg=canvas.svg(),
        caption=f"The dot is the score, the line through it its {level} interval. Where two "
        "intervals overlap much, these data do not show which of the two scores is higher.",
    )


def _draw(
    canvas: Canvas,
    rows: Sequence[_Row],
    legend: tuple[str, str] | None = None,
    chance: float | None = None,
) -> None:
    axes = canvas.axes()
    for position, row in enumerate(rows):
        if (interval := row.estimate.interval) is not None:
            axes.plot([interval.low, interval.high], [position] * 2, color=BLUE, linewidth=2)
    positions = range(len(rows))
    values = [row.estimate.value for row in rows]
    axes.plot(values, positions, "o", color=BLUE, label=legend[0] if legend else None)
    if legend is not None:
        beside = [np.nan if row.beside is None else row.beside for row in rows]
        axes.plot(
            beside, positions, "D", markersize=4.5, fillstyle="none", color=ORANGE, label=legend[1]
        )
        canvas.figure.legend(loc="outside lower center", ncols=2)
    if chance is not None:
        axes.axvline(chance, color=MUTED, linestyle="--", linewidth=1)
    axes.set_yticks(list(positions), [row.label for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(min(0.0, *values) - 0.02, max(1.0, *values) + 0.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
