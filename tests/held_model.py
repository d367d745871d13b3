"""A server whose model waits for the test before each batch.

A test of what happens while work waits must not depend on how long a batch takes. It holds the
model instead, sends its requests, waits until the server has them, and lets the model go on.

The server is the real one: `programs/serve_held.py` runs `kwise serve` and wraps two methods. The
encoder's method logs each group that it has tokenised. The session's method logs each batch, and
reads one byte from a FIFO before it runs, which blocks while the test holds the model. Once nobody
has the FIFO open for writing, the read returns at the end of the file, so that a test that fails
leaves no blocked server.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import Server, running_server, wait_until

SCRIPT = Path(__file__).parent / "programs" / "serve_held.py"


class HeldModel:
    """The test's side. It serves one server, or several one after the other.

    `directory` is where the FIFO and the log lie.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writer: int | None = None
        os.mkfifo(directory / "fifo")
        (directory / "log").touch()

    def hold(self) -> None:
        """Let no further batch start."""
        # For reading as well, because to open it only for writing fails while no server runs.
        self._writer = os.open(self.directory / "fifo", os.O_RDWR)

    def let_through(self, num_batches: int) -> None:
        """Let the held model run this many batches."""
        assert self._writer is not None
        os.write(self._writer, b"." * num_batches)

    def release(self) -> None:
        """Let the model run freely."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None

    @property
    def batches(self) -> list[list[int]]:
        """The batches that the model was given so far, the one that is held included.

        Each is the list of its sequences' lengths in tokens.
        """
        return [entry["batch"] for entry in self._log() if "batch" in entry]

    @property
    def num_tokenised(self) -> int:
        """How many groups were tokenised so far."""
        return sum("tokenised" in entry for entry in self._log())

    def wait_for_batches(self, count: int) -> None:
        """Wait until the model has been given `count` batches."""
        wait_until(lambda: len(self.batches) >= count)

    def wait_for_tokenised(self, count: int) -> None:
        """Wait until `count` groups have been tokenised."""
        wait_until(lambda: self.num_tokenised >= count)

    def _log(self) -> list[dict[str, Any]]:
        lines = (self.directory / "log").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


@contextmanager
def running_held_server(artifact: Path, held: HeldModel, *options: str) -> Iterator[Server]:
    """Run `kwise serve` as `running_server` does, with a model that `held` can hold."""
    entry_point = (sys.executable, str(SCRIPT), str(held.directory))
    with running_server(artifact, *options, entry_point=entry_point) as server:
        try:
            yield server
        finally:
            held.release()
