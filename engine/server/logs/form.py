"""The form of the log: text for people, or a JSON object a line for programs.

The standard library's Formatter is enough: a library for JSON logs (python-json-logger) replaces
the 30 lines below, and would be a dependency of each server.
"""

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kwise.engine.server.calls.running_call import RunningCall, current_call
from kwise.engine.server.logs.options import LogFormat, LogLevel

_TEXT_FORM = "%(asctime)s %(levelname)s %(message)s"
# The attribute of a log record with further fields of its JSON object.
FIELDS = "kwise_fields"
_MAX_CLIENT_CHARACTERS = 100
# Control characters, those that change the direction of writing, other line ends, and halves of
# surrogate pairs, as names of files that are not UTF-8 have them.
_NOT_SHOWN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def configure_log(level: LogLevel, log_format: LogFormat) -> None:
    """Write the log of this process to standard error in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if log_format is LogFormat.JSON else _TextFormatter())
    logging.basicConfig(level=level.name, handlers=[handler], force=True)
    if level is LogLevel.DEBUG:
        # Other libraries write many lines at this level, and may write texts.
        for name in ("asyncio", "grpc", "uvicorn", "redis", "opentelemetry"):
            logging.getLogger(name).setLevel(logging.INFO)


def fields_of(call: RunningCall) -> dict[str, Any]:
    """Return the fields that each line about a call has."""
    fields: dict[str, Any] = {
        "request_id": call.request_id,
        "client": shown_client(call.client),
        "model": call.model,
        "method": call.method,
    }
    if call.status is not None:
        fields |= {"status": call.status.name, "duration_ms": round(1000 * call.duration_s, 3)}
    return {name: value for name, value in fields.items() if value != ""}


def shown_client(client: str) -> str:
    """Return the name of a client for the log. Callers without a token choose it as they like."""
    shown = client[:_MAX_CLIENT_CHARACTERS]
    return shown if shown.isprintable() else repr(shown)


class _TextFormatter(logging.Formatter):
    """Writes lines of text. A line that is written while a call is answered ends with its id.

    Paths, names of artifacts and messages of other libraries may have line ends and escape
    sequences. So each line after the first one is indented, and no text can look like a line of its
    own; control characters are written as Python writes them in a string.
    """

    def __init__(self) -> None:
        super().__init__(_TEXT_FORM)

    def format(self, record: logging.LogRecord) -> str:
        return _NOT_SHOWN.sub(_escaped, super().format(record)).replace("\n", "\n    ")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        if (call := current_call()) is None or FIELDS in record.__dict__:
            return line
        return f"{line} (request {call.request_id} of {shown_client(call.client)})"


class _JsonFormatter(logging.Formatter):
    """Writes one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        call, fields = current_call(), getattr(record, FIELDS, None)
        entry = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if fields is None and call is not None:
            fields = fields_of(call)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # In ASCII: standard error may have another encoding, whose escapes are not those of JSON.
        return json.dumps(entry | dict(fields or {}))


def with_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument `extra` of a call of `logging` that adds fields to a line in JSON."""
    return {FIELDS: fields}


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _rfc3339(seconds: float) -> str:
    time = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return time.replace("+00:00", "Z")
