"""One metric: its name, its meaning, and how its samples are read from a model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from kwise.engine.server.metrics.observed import ObservedModel
from kwise.engine.statistics.histogram import Histogram


class Kind(Enum):
    """The type of a metric, as Prometheus calls it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """The number of observations, and their sum: a summary without quantiles."""

    count: int
    total: float


Value = float | Histogram | Sum
Labelled = tuple[tuple[str, ...], Value]
"""The values of a metric's labels after `model`, and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric that each model has.

    Attributes:
        name: the name as Prometheus shows it; a counter's ends with "_total".
        kind: its type.
        help: its meaning, in one sentence.
        labels: the names of its labels after `model`.
        read: returns its samples. A metric without labels may have none, if its value is unknown.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Callable[[ObservedModel], Iterable[Labelled]]


def counter(name: str, meaning: str, read: Callable[[ObservedModel], float]) -> Metric:
    """Return a counter without labels of its own."""
    return _plain(name, Kind.COUNTER, meaning, read)


def gauge(name: str, meaning: str, read: Callable[[ObservedModel], float | None]) -> Metric:
    """Return a gauge without labels of its own. It has no sample where `read` returns None."""
    return _plain(name, Kind.GAUGE, meaning, read)


def histogram(name: str, meaning: str, read: Callable[[ObservedModel], Histogram]) -> Metric:
    """Return a histogram without labels of its own."""
    return _plain(name, Kind.HISTOGRAM, meaning, read)


def _plain(
    name: str, kind: Kind, meaning: str, read: Callable[[ObservedModel], Value | None]
) -> Metric:
    def samples(model: ObservedModel) -> Iterable[Labelled]:
        value = read(model)
        return () if value is None else (((), value),)

    return Metric(name=name, kind=kind, help=meaning, labels=(), read=samples)


def by_label(
    name: str,
    kind: Kind,
    meaning: str,
    label: str,
    **values: Callable[[ObservedModel], Value],
) -> Metric:
    """Return a metric with one sample per value of a label."""
    return Metric(
        name=name,
        kind=kind,
        help=meaning,
        labels=(label,),
        read=lambda model: (((value,), read(model)) for value, read in values.items()),
    )
