"""The benchmarks of the model alone, without queue and network: rates, precisions, caches, GPUs."""
