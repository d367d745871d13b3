"""Prometheus metrics, which are read from the engine's counters when they are scraped."""
