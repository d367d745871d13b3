"""The processes of a Ray cluster of this machine, by what they run."""

from contextlib import suppress
from typing import Any

import pytest


def ray_processes(name: str) -> list[Any]:
    """Return the processes of this test's cluster whose title, which Ray sets, contains `name`."""
    psutil = pytest.importorskip("psutil")
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if f"ray::{name}" in "".join(process.cmdline()):
                found.append(process)
    return found
