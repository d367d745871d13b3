"""Send spans to a collector over OTLP, in a thread of OpenTelemetry's own."""

import asyncio
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from kwise.engine.server.calls.running_call import CallObserver, CallObservers
from kwise.engine.server.daemon_thread import in_daemon_thread
from kwise.engine.server.tracing.options import (
    check_protocol,
    unset_empty_variables,
    wants_traces,
)
from kwise.errors import ConfigError
from kwise.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# These log a warning for each malformed entry of a caller's headers, and quote it.
_PROPAGATORS = ("opentelemetry.baggage", "opentelemetry.trace", "opentelemetry.propagators")

# A collector that cannot be reached must not hold the end of the server.
_LAST_SPANS_S = 2.0


class Tracing:
    """Traces of the calls of a service.

    Args:
        endpoint: the URL of a collector that speaks OTLP over gRPC, such as http://localhost:4317;
            "" for that of OpenTelemetry's variables.

    Raises:
        ConfigError: traces are wanted, and the packages are missing or a variable of OpenTelemetry
            has a wrong value.
    """

    def __init__(self, endpoint: str) -> None:
        self._provider: TracerProvider | None = None
        self._observer: CallObserver | None = None
        if not wants_traces(endpoint):
            return
        check_protocol(endpoint)
        unset_empty_variables()
        try:
            self._observer = self._start(endpoint)
        except ImportError as error:
            raise ConfigError(
                f"--otlp-endpoint needs OpenTelemetry ({error.name} is missing): install "
                "kwise[tracing], or unset OTEL_EXPORTER_OTLP_ENDPOINT"
            ) from None
        except Exception as error:
            # Only names, because the value of OTEL_EXPORTER_OTLP_HEADERS is a secret.
            names = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
            problem = f"OpenTelemetry refuses a value of its variables OTEL_*: {error}"
            raise ConfigError(f"{problem}; those that are set: {names or 'none'}") from error

    def observe(self, observers: CallObservers) -> None:
        """Make spans of the calls that have these observers, if traces are wanted."""
        if self._observer is not None:
            observers.wants_stages = True
            observers.append(self._observer)

    def _start(self, endpoint: str) -> CallObserver:
        """Start the thread that sends spans, and return what makes them of calls."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from kwise.engine.server.tracing.spans import CallSpans

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence. The provider reads
        # OTEL_TRACES_SAMPLER.
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "kwise"}))
        provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint or None)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        for name in _PROPAGATORS:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._provider = provider
        return CallSpans(provider.get_tracer("kwise", __version__))

    async def close(self) -> None:
        """Send the spans that are left, within two seconds."""
        if self._provider is None:
            return
        sending = in_daemon_thread(self._provider.shutdown, name="kwise last spans")
        with suppress(TimeoutError):
            await asyncio.wait_for(sending, _LAST_SPANS_S)
