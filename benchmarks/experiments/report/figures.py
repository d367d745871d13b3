"""Plots in the style of the documentation, written as SVG."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from kwise.benchmarks.experiments.report.intervals import Estimate

matplotlib.use("svg")
from matplotlib import pyplot as plt

COLOURS = ("#1f5fa8", "#c8551b", "#3d8f4f", "#7b4fa0", "#8a6d1f", "#666666", "#b03060")
_SETTINGS = {
    "svg.hashsalt": "kwise",  # the same file for the same results
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@contextmanager
def figure(path: Path, panels: int = 1, **options: Any) -> Iterator[Sequence[Any]]:
    """Yield the axes of a row of panels, and write the figure to `path` afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_SETTINGS):
        figure_, axes = plt.subplots(
            1, panels, figsize=(3.4 * panels + 1.2, 3.1), squeeze=False, **options
        )
        yield axes[0]
        figure_.tight_layout()
        figure_.savefig(path, metadata={"Date": None})
        plt.close(figure_)
        # matplotlib ends lines of paths with blanks, which git reports.
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def line(
    axes: Any, xs: Sequence[float], estimates: Sequence[Estimate], label: str, colour: str
) -> None:
    """Draw estimates, in percent, with their intervals as a band."""
    values = 100 * np.array([one.value for one in estimates])
    lows = 100 * np.array([one.low for one in estimates])
    highs = 100 * np.array([one.high for one in estimates])
    axes.plot(xs, values, marker="o", markersize=3, color=colour, label=label)
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)


def baseline(axes: Any, one: Estimate, label: str) -> None:
    """Draw a horizontal line."""
    axes.axhline(100 * one.value, color="#666666", linestyle=":", linewidth=1, label=label)
