"""The version of kwise, for every part that reports it."""

__version__ = "0.1.0"
