"""Run `kwise …` with a model that a test can hold; see tests/held_model.py.

Usage: python serve_held.py DIRECTORY serve ARTIFACT …
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from kwise.cli import main
from kwise.engine.model.session import GraphSession
from kwise.engine.schedule.batcher import SESSION_THREADS
from kwise.engine.text.encoder import ConversationEncoder

directory = Path(sys.argv[1])
log = os.open(directory / "log", os.O_WRONLY | os.O_APPEND)
fifo = os.open(directory / "fifo", os.O_RDONLY | os.O_NONBLOCK)
os.set_blocking(fifo, True)
prepare, encode = GraphSession.prepare, ConversationEncoder.encode


def write(**entry: object) -> None:
    """Append one line to the log, in one system call so that lines of two threads do not mix."""
    os.write(log, (json.dumps(entry) + "\n").encode())


def held_prepare(self: GraphSession, batch: Any, started: Any = lambda: None) -> Any:
    run = prepare(self, batch, started)

    def held_run() -> Any:
        # Other threads score the golden conversations, at start-up and in a reload.
        if threading.current_thread().name.startswith(SESSION_THREADS):
            write(batch=[sequence.num_tokens for sequence in batch])
            os.read(fifo, 1)
        return run()

    return held_run


def logged_encode(self: ConversationEncoder, group: Any) -> Any:
    outcomes = encode(self, group)
    if threading.current_thread() is not threading.main_thread():
        write(tokenised=len(group.responses))
    return outcomes


if __name__ == "__main__":
    GraphSession.prepare = held_prepare  # type: ignore[method-assign]
    ConversationEncoder.encode = logged_encode  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
