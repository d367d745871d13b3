"""The benchmark of training, and the process that it runs."""
