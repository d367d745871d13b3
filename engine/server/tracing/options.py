"""The options of traces: `--otlp-endpoint`, and OpenTelemetry's own variables."""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from kwise.errors import ConfigError

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wants_traces(endpoint: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if an endpoint is given and no variable turns traces off.

    See https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = {
        name.strip().lower() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",")
    }
    if exporters.isdisjoint({"otlp", ""}):
        return False
    return bool(endpoint) or any(environ.get(name, "").strip() for name in _ENDPOINTS)


def check_endpoint(endpoint: str) -> None:
    """Check the value of `--otlp-endpoint`; "" stands for none.

    The exporter takes nearly every string: it reads localhost:4317 as an address with TLS, and
    ignores a path.

    Raises:
        ConfigError: it is not http://HOST:PORT or https://HOST:PORT.
    """
    if not endpoint:
        return
    try:
        url = urlsplit(endpoint)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port is not a number up to 65535
        is_address = False
    if not is_address or url.path.strip("/") or url.query or url.fragment:
        raise ConfigError(
            f"--otlp-endpoint is {endpoint!r}; it must be the URL of a collector that takes "
            "OTLP/gRPC, without a path: http://HOST:PORT, or https://HOST:PORT for TLS"
        )


def check_protocol(endpoint: str, environ: Mapping[str, str] = os.environ) -> None:
    """Check that OpenTelemetry's variables do not ask for OTLP over HTTP.

    Raises:
        ConfigError: they name the endpoint, and another protocol than gRPC for it.
    """
    name = next((name for name in _PROTOCOLS if environ.get(name, "").strip()), None)
    if endpoint or name is None or environ[name].strip().lower() == "grpc":
        return
    raise ConfigError(
        f"{name} is {environ[name]!r}; kwise sends traces over grpc only: name the collector's "
        "gRPC address with --otlp-endpoint (its port is 4317 as a rule)"
    )


def unset_empty_variables() -> None:
    """Remove OpenTelemetry's variables without a value. They count as unset, except in its code."""
    for name, value in list(os.environ.items()):
        if name.startswith("OTEL_") and not value.strip():
            del os.environ[name]
