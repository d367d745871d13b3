"""No text in a line of the log can look like another line, or command a terminal."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwise.engine.server.logs.form import configure_log
from kwise.engine.server.logs.options import LogFormat, LogLevel

# As the name of a directory may be: a line end, an escape sequence, another direction of writing,
# a line end of Unicode, and a byte that is not UTF-8.
HOSTILE = "a\n2026-11-29 ERROR forged\r\x1b[2J\u202e\u2028\x9b\udcff\u00e9"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_of_text_begins_no_other_and_has_no_control_characters(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_log(LogLevel.INFO, LogFormat.TEXT)
    root.info("loading %s", HOSTILE)
    written = capsys.readouterr().err
    first, second, end = written.split("\n")
    assert first.endswith("INFO loading a") and not end
    shown = r"ERROR forged\r\x1b[2J\u202e\u2028\x9b\udcff"
    assert second == f"    2026-11-29 {shown}\u00e9"


def test_a_traceback_stays_readable(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_log(LogLevel.INFO, LogFormat.TEXT)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        root.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in lines[1:])


def test_json_is_one_object_a_line_in_every_encoding(root: logging.Logger, tmp_path: Path) -> None:
    configure_log(LogLevel.INFO, LogFormat.JSON)
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    path = tmp_path / "log"
    # Standard error writes what its encoding lacks as Python does, which JSON does not read.
    with path.open("w", encoding="ascii", errors="backslashreplace") as stream:
        handler.setStream(stream)
        root.info("loading %s", HOSTILE)
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["message"] == f"loading {HOSTILE}"
