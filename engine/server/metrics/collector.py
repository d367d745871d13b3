"""The collector: turns the table of metrics and a service into Prometheus' text.

A registry is made for each scrape, because all state is in the service. A scrape runs in the event
loop that owns the counters, so all numbers of one scrape are of one moment.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kwise.engine.server.metrics.metric import Kind, Metric, Sum, Value
from kwise.engine.server.metrics.observed import ObservedModel, observed_models
from kwise.engine.server.metrics.table import METRICS
from kwise.engine.server.service import RewardService
from kwise.engine.statistics.histogram import Histogram
from kwise.version import __version__

# The text format that every version of Prometheus reads, and no other content type.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FAMILIES = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
    Kind.SUMMARY: SummaryMetricFamily,
}


def exposition(service: RewardService) -> bytes:
    """Return all metrics of a service and of this process in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class ServiceCollector(Collector):
    """Reads the metrics of a service.

    Args:
        service: the service.
    """

    def __init__(self, service: RewardService) -> None:
        self._service = service

    def describe(self) -> Iterable[Family]:
        """Return nothing: a registry that is used once needs no check for duplicate names."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Yield all families, each with the samples of all models."""
        models = list(observed_models(self._service))
        yield InfoMetricFamily("kwise_build", "Version of kwise.", {"version": __version__})
        yield _model_info(models)
        yield GaugeMetricFamily(
            "kwise_draining",
            "1 while the server shuts down and refuses new requests, else 0.",
            value=float(self._service.draining.is_set()),
        )
        yield from self._requests()
        for metric in METRICS:
            yield _family(metric, models)

    def _requests(self) -> Iterator[Family]:
        requests = CounterMetricFamily(
            "kwise_requests_total",
            "Calls with one reply and requests of streams, by how they ended.",
            labels=("protocol", "method", "model", "status"),
        )
        streams = CounterMetricFamily(
            "kwise_streams_total",
            "Streams that have ended, by how.",
            labels=("protocol", "method", "status"),
        )
        for labels, count in self._service.call_counts.requests.items():
            requests.add_metric(labels, count)
        for (protocol, method, _, status), count in self._service.call_counts.streams.items():
            streams.add_metric((protocol, method, status), count)
        yield from (requests, streams)


def _model_info(models: Iterable[ObservedModel]) -> Family:
    names = ("model", "fingerprint", "layout", "precision", "runtime")
    family = InfoMetricFamily("kwise_model", "The models that are served.", labels=names)
    for model in models:
        family.add_metric([getattr(model.info, name) for name in names], {})
    return family


def _family(metric: Metric, models: Iterable[ObservedModel]) -> Family:
    make: Any = _FAMILIES[metric.kind]
    family: Family = make(metric.name, metric.help, labels=("model", *metric.labels))
    for model in models:
        for labels, value in metric.read(model):
            _add(family, (model.info.model, *labels), value)
    return family


def _add(family: Family, labels: tuple[str, ...], value: Value) -> None:
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(value, Histogram)
        go_string: Any = floatToGoString  # the library has no type for it
        buckets = [(go_string(bound), count) for bound, count in value.cumulative()]
        # The library leaves the sum out where values may be negative, as OpenMetrics asks.
        family.add_metric(labels, buckets, value.total)
    elif isinstance(family, SummaryMetricFamily):
        assert isinstance(value, Sum)
        family.add_metric(labels, value.count, value.total)
    else:
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        assert isinstance(value, int | float)
        family.add_metric(labels, value)
