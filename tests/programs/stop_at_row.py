"""Run `kwise …` and send this process a signal when it writes a given row of its output.

Usage: python stop_at_row.py SIGNAL ROW rerank IN OUT …

SIGNAL is a name such as SIGKILL; ROW counts from 0. A checkpoint follows each window, so that a run
of a second has some.
"""

import os
import signal
import sys
from itertools import count

from kwise.bulk.output import files
from kwise.cli import main

stop = signal.Signals[sys.argv[1]]
stop_at = int(sys.argv[2])
rows = count()
write = files.RunFiles.write


def write_and_stop(self: files.RunFiles, line: bytes) -> None:
    write(self, line)
    if next(rows) == stop_at:
        os.kill(os.getpid(), stop)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    files._CHECKPOINT_S = 0.0
    files.RunFiles.write = write_and_stop  # type: ignore[method-assign]
    sys.exit(main(sys.argv[3:]))
