"""The HTML page of an evaluation."""

from pathlib import Path

from kwise.evaluation.result import Evaluation


def write_html(evaluation: Evaluation, path: Path) -> None:
    """Write the page of `evaluation`."""
    raise NotImplementedError("--html is not available yet")
