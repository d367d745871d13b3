"""The choices of `--log-level` and `--log-format`."""

from enum import Enum


class LogLevel(Enum):
    """The least important lines that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(Enum):
    """The form of a line of the log."""

    TEXT = "text"
    JSON = "json"
