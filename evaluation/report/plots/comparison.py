"""The plot of the differences of two models."""

from collections.abc import Mapping, Sequence

from kwise.evaluation.report.plots.canvas import BLUE, INK, MUTED, Canvas, Plot, in_page_style
from kwise.evaluation.result import Difference


@in_page_style
def differences_plot(
    differences: Sequence[Difference], names: Mapping[str, str], level: str
) -> Plot:
    """Return the differences with their intervals; `names` has that of each figure."""
    canvas = Canvas(
        "differences",
        "A minus B",
        "; ".join(f"{names[part.figure]}: {part.difference.value:+.3f}" for part in differences),
        height_in=0.9 + 0.35 * len(differences),
    )
    axes = canvas.axes()
    for position, part in enumerate(differences):
        if (interval := part.difference.interval) is not None:
            axes.plot([interval.low, interval.high], [position] * 2, color=BLUE, linewidth=2)
    positions = range(len(differences))
    axes.plot([part.difference.value for part in differences], positions, "o", color=BLUE)
    axes.axvline(0, color=MUTED, linestyle="--", linewidth=1)
    axes.set_yticks(list(positions), [names[part.figure] for part in differences], color=INK)
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return Plot(
        svg=canvas.svg(),
        caption=f"The dot is the figure of A minus that of B, the line through it its {level} "
        "interval. Both models have the same prompts in each resample. An interval across the "
        "dashed line at 0 means that these data do not show a difference. To the right of 0 A has "
        "the higher figure, which is better, except for the negative log likelihood.",
    )
