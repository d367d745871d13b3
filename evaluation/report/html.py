"""The HTML pages of evaluations and comparisons: files without scripts, which load nothing.

A page has all figures of the JSON file in tables, and plots of them as SVG inside the page. jinja2
escapes whatever comes from the model or the data. The same result gives the same bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from kwise.errors import ConfigError
from kwise.evaluation.estimate import Estimate
from kwise.evaluation.report.aligned import interval_text
from kwise.evaluation.report.table import FIGURE_NAMES
from kwise.evaluation.result import Evaluation, ModelComparison
from kwise.libraries.extras import how_to_install
from kwise.libraries.plotting import load_matplotlib
from kwise.publish import publish_text


def write_html(evaluation: Evaluation, path: Path) -> None:
    """Write the page of `evaluation`; the file appears as a whole.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    publish_text(page_of(evaluation), path)


def write_comparison_html(comparison: ModelComparison, path: Path) -> None:
    """Write the page of `comparison`; see `write_html`."""
    publish_text(comparison_page_of(comparison), path)


def page_of(evaluation: Evaluation) -> str:
    """Return the page of `evaluation`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    with _matplotlib_needed():
        from kwise.evaluation.report.plots.page import plots_of
    level = f"{evaluation.settings.confidence:.0%}"
    return _render(
        "page.html.jinja",
        evaluation=evaluation,
        figures=evaluation.figures,
        level=level,
        plots=plots_of(evaluation, level),
    )


def comparison_page_of(comparison: ModelComparison) -> str:
    """Return the page of `comparison`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    with _matplotlib_needed():
        from kwise.evaluation.report.plots.comparison import differences_plot
    level = f"{comparison.settings.confidence:.0%}"
    return _render(
        "comparison.html.jinja",
        comparison=comparison,
        names=FIGURE_NAMES,
        level=level,
        plot=differences_plot(comparison.differences, FIGURE_NAMES, level),
    )


@contextmanager
def _matplotlib_needed() -> Iterator[None]:
    """Load matplotlib for the imports in the block, or name the extra that brings it."""
    try:
        load_matplotlib()
        yield
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ConfigError(f"--html needs matplotlib: {how_to_install('eval')}") from None


def _render(template: str, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader(__package__ or "", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "number": _number,
        "interval": lambda estimate: _interval(estimate, "{:.3f}"),
        "percent_interval": lambda estimate: _interval(estimate, "{:.1%}"),
        "signed_interval": lambda estimate: _interval(estimate, "{:+.3f}"),
    }
    return environment.get_template(template).render(values)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(estimate: Estimate | None, form: str) -> str:
    return interval_text(estimate, form) or "–"
