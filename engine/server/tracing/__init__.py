"""OpenTelemetry traces of calls. The packages are imported only if somebody wants traces."""
