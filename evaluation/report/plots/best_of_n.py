"""The best-of-n curve."""

from matplotlib.ticker import MaxNLocator

from kwise.evaluation.report.plots.canvas import BLUE, GREEN, MUTED, Canvas, Plot, in_page_style
from kwise.evaluation.result import BestOfN


@in_page_style
def best_of_n_plot(curve: BestOfN, level: str) -> Plot:
    """Return the expected quality of the response that the model picks among n."""
    n = [point.n for point in curve.points]
    last = curve.points[-1]
    canvas = Canvas(
        "best-of-n",
        "Best of n",
        f"The expected {curve.quality} of the response picked among {last.n}: "
        f"{last.model.value:.3f} by the model, {last.best:.3f} at best, {last.random:.3f} at "
        "random. The table below has all points.",
    )
    axes = canvas.axes()
    axes.plot(n, [point.best for point in curve.points], "--", color=GREEN, label="best possible")
    lows = [p.model.interval.low if p.model.interval else p.model.value for p in curve.points]
    highs = [p.model.interval.high if p.model.interval else p.model.value for p in curve.points]
    axes.fill_between(n, lows, highs, color=BLUE, alpha=0.2, linewidth=0)
    values = [point.model.value for point in curve.points]
    axes.plot(n, values, "o-", color=BLUE, markersize=4.5, label="the model")
    axes.plot(n, [point.random for point in curve.points], ":", color=MUTED, label="at random")
    axes.set_xlabel("n, responses to pick from")
    axes.set_ylabel(f"expected {curve.quality}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")
    meaning = (
        "the score of the response in the data"
        if curve.quality == "score"
        else "the share of the other responses of its ranking that a response is better than"
    )
    return Plot(
        svg=canvas.svg(),
        caption=f"The model picks the response with the highest reward among n. The vertical axis "
        f"is the mean of {meaning}. The closer the curve is to the dashed one, the more of the "
        f"possible gain the model finds; the band is its {level} interval. A curve that falls "
        "for large n means that the model prefers some bad responses to all good ones. Rankings "
        "with fewer than n responses are not in the points from n on.",
    )
