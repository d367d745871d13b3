"""The HTML page of an evaluation: one file without scripts, which loads nothing.

The page has all figures of the JSON file in tables, and plots of them as SVG inside the page.
jinja2 escapes whatever comes from the model or the data. The same evaluation gives the same bytes.
"""

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from kwise.errors import ConfigError
from kwise.evaluation.estimate import Estimate
from kwise.evaluation.result import Evaluation
from kwise.libraries.extras import how_to_install
from kwise.publish import publish_text

_TEMPLATE = "page.html.jinja"


def write_html(evaluation: Evaluation, path: Path) -> None:
    """Write the page of `evaluation`; the file appears as a whole.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    publish_text(page_of(evaluation), path)


def page_of(evaluation: Evaluation) -> str:
    """Return the page of `evaluation`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from kwise.evaluation.report.plots.page import plots_of
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ConfigError(f"--html needs matplotlib: {how_to_install('eval')}") from None
    level = f"{evaluation.settings.confidence:.0%}"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": _percent,
        "number": _number,
        "interval": _interval,
        "percent_interval": _percent_interval,
    }
    template = files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        evaluation=evaluation,
        figures=evaluation.figures,
        level=level,
        plots=plots_of(evaluation, level),
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(estimate: Estimate | None) -> str:
    return _span(estimate, "{:.3f}")


def _percent_interval(estimate: Estimate | None) -> str:
    return _span(estimate, "{:.1%}")


def _span(estimate: Estimate | None, form: str) -> str:
    if estimate is None or estimate.interval is None:
        return "–"
    return f"{form.format(estimate.interval.low)} to {form.format(estimate.interval.high)}"
