"""Run `kwise …` with a load of the model that begins once a test has written to a FIFO.

Usage: python serve_after.py FIFO serve ARTIFACT …
"""

import sys
from pathlib import Path
from typing import Any

from kwise.cli import main
from kwise.engine.server.models.loader import Loader

load = Loader.load


def held_load(self: Loader, sources: Any) -> Any:
    Path(sys.argv[1]).read_bytes()
    return load(self, sources)


if __name__ == "__main__":
    Loader.load = held_load  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
