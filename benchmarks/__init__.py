"""Benchmarks of kwise, as `kwise bench` runs them: each with its question and its physics in its docstring."""
