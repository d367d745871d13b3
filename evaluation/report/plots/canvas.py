"""Inline SVG from matplotlib: the same bytes for the same data, in the colours of the page.

matplotlib writes fixed colours, which cannot suit a light and a dark page. So a figure is drawn in
stand-in colours, and each is replaced by a variable of the page's style sheet. Texts stay texts, in
the font of the page; matplotlib's default, outlines of letters, would make the file larger and hide
the texts from a search.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import ParamSpec, TypeVar

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-in colours and the variables that replace them. No other colour may be used in a plot.
INK, MUTED, RULE, PAPER = "#000001", "#000002", "#000003", "#000004"
BLUE, ORANGE, GREEN = "#000005", "#000006", "#000007"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
}
WIDTH_IN = 4.8
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in the name of a model is a dollar
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9,
    "patch.edgecolor": PAPER,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def in_page_style(draw: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Make a function draw in the style of the page, whatever style the process has set."""

    @wraps(draw)
    def draw_in_style(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with rc_context():
            rcdefaults()
            rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return draw_in_style


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot of the page.

    Attributes:
        svg: an element <svg> that can stand in HTML.
        caption: how to read the plot, in sentences.
    """

    svg: str
    caption: str


class Canvas:
    """A figure, and the axes on it. Use it in functions that are `in_page_style`.

    Args:
        name: letters and hyphens; ids in the SVG begin with it, because a page has several plots.
        title, description: for readers who do not see the plot.
    """

    def __init__(self, name: str, title: str, description: str, *, height_in: float = 3.2) -> None:
        self._name, self._title, self._description = name, title, description
        self.figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")

    def axes(self) -> Axes:
        """Return the only axes of the figure."""
        return self.figure.subplots()

    def stacked_axes(self, heights: tuple[float, ...]) -> list[Axes]:
        """Return axes one above the other that share the horizontal axis."""
        ratios = {"height_ratios": heights}
        return list(self.figure.subplots(len(heights), 1, sharex=True, gridspec_kw=ratios))

    def svg(self) -> str:
        """Return the figure as an element <svg>."""
        file = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with rc_context({"svg.hashsalt": self._name}):
            self.figure.savefig(file, format="svg", metadata=metadata, transparent=True)
        text = file.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self._name}-", text)
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, f"var({variable})")
        view_box = re.search(r'viewBox="[^"]*"', text)
        assert view_box is not None, "matplotlib writes a viewBox"
        _, _, content = text.partition(">")
        title_id, description_id = f"{self._name}-title", f"{self._name}-description"
        return (
            f'<svg {view_box[0]} role="img" aria-labelledby="{title_id} {description_id}" '
            'xmlns:xlink="http://www.w3.org/1999/xlink">\n'
            f' <title id="{title_id}">{escape(self._title)}</title>\n'
            f' <desc id="{description_id}">{escape(self._description)}</desc>{content}'
        )
