"""The scorers of windows: a model in this process, or servers."""
