"""Benchmarks of a server that runs in a process of its own."""
