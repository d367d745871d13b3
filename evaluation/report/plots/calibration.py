"""The reliability diagram, above the histogram of the predicted probabilities."""

from collections.abc import Sequence

from matplotlib.ticker import PercentFormatter

from kwise.evaluation.report.plots.canvas import BLUE, MUTED, ORANGE, Canvas, Plot, in_page_style
from kwise.evaluation.result import Calibration, ReliabilityBin


@in_page_style
def reliability_plot(calibration: Calibration) -> Plot:
    """Return the reliability of sigmoid(margin), also after division by the fitted temperature."""
    canvas = Canvas(
        "reliability",
        "Reliability diagram",
        f"Expected calibration error {calibration.ece:.3f}. The table below has all bins.",
        height_in=4.2,
    )
    curve, histogram = canvas.stacked_axes((3, 1))
    curve.plot([0.5, 1], [0.5, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect")
    _curve(curve, calibration.bins, BLUE, "o-", "as the model is")
    if calibration.temperature is not None:
        label = f"rewards divided by {calibration.temperature:.3g}"
        _curve(curve, calibration.scaled_bins, ORANGE, "D--", label)
    curve.set_ylabel("pairs that are right")
    curve.set_ylim(-0.02, 1.02)
    curve.yaxis.set_major_formatter(PercentFormatter(1.0))
    curve.legend(loc="lower right")
    for part in calibration.bins:
        width = part.high - part.low
        histogram.bar(part.low, part.num_pairs, width=width, align="edge", color=BLUE)
    histogram.set_ylabel("pairs")
    histogram.set_xlim(0.49, 1.01)
    histogram.xaxis.set_major_formatter(PercentFormatter(1.0))
    histogram.set_xlabel("predicted probability that the higher reward is right")
    return Plot(
        svg=canvas.svg(),
        caption="Pairs are grouped by the probability that the model predicts, sigmoid of the "
        "difference of the two rewards. On the dashed line, a prediction of 80 % is right in 80 % "
        "of the pairs. Below the line the model is too sure, above it not sure enough. The bars "
        "show how many pairs each point stands for: a point over a low bar is uncertain.",
    )


def _curve(
    axes: object, bins: Sequence[ReliabilityBin], colour: str, form: str, label: str
) -> None:
    axes.plot(  # type: ignore[attr-defined]
        [part.probability for part in bins],
        [part.accuracy for part in bins],
        form,
        color=colour,
        markersize=4.5,
        label=label,
    )
