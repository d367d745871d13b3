"""Run a Python program and kill it with SIGKILL once it prints a given line of progress.

Usage: python kill_at.py LINE (-m MODULE | SCRIPT) ARGUMENT…

LINE is how the line on standard error begins. A launcher, such as torchrun, and its other processes
are killed first, as when a machine goes down.
"""

import os
import runpy
import signal
import sys
from typing import Any

import psutil


class KillingStream:
    """Standard error that kills the process when `line` is written to it."""

    def __init__(self, stream: Any, line: str) -> None:
        self._stream = stream
        self._line = line

    def write(self, text: str) -> int:
        if text.startswith(self._line):
            kill_everything()
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def kill_everything() -> None:
    """Kill the launcher, if there is one, with all of its processes, and this process."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = psutil.Process(os.getppid())
        # The launcher first, so that it cannot stop the others in a way of its own.
        for process in (launcher, *launcher.children(recursive=True)):
            if process.pid != os.getpid():
                process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _, line, *program = sys.argv
    sys.stderr = KillingStream(sys.stderr, line)
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")
