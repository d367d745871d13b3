"""The output of a step of the benchmark: a line for people, and its figures for the results."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, Protocol

from kwise.benchmarks.gpu.subjects import Subject
from kwise.engine.precision import Precision

FIGURES = "figures "
"""Begins each line of a step's output that has figures; the rest of the line is JSON."""


class Tell(Protocol):
    """Takes a line for people, and the figures in it."""

    def __call__(self, line: str, **figures: Any) -> None: ...


def print_figures(line: str, **figures: Any) -> None:
    """Print a line and its figures at once, so that a step that is cut short leaves them."""
    print(FIGURES + json.dumps({"line": line, **figures}), flush=True)


@contextmanager
def attempt(subject: Subject, precision: Precision | None, tell: Tell) -> Iterator[None]:
    """Tell of an error instead of raising it, because the other models may work."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - libraries for GPUs raise anything
        what = subject.name + (f" {precision.value}" if precision else "")
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        tell(
            f"{what}: FAILED: {problem}",
            subject=subject.name,
            precision=precision.value if precision else None,
            failed=problem,
        )


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Return the median of the ratios within a repeat."""
    return median(a / b for a, b in zip(slower, faster, strict=True))
