"""Decide whether traces are wanted: by `--otlp-endpoint`, or by OpenTelemetry's own variables."""

import os
from collections.abc import Mapping

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wants_traces(endpoint: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if an endpoint is given and no variable turns traces off.

    See https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() not in ("otlp", ""):
        return False
    return bool(endpoint) or any(environ.get(name, "").strip() for name in _ENDPOINTS)
