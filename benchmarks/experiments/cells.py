"""Cells of an experiment, each one line of a JSON Lines file; a cell that is done is not run again.

A cell is a frozen dataclass of strings and numbers. Its line has its fields, and what was measured.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PROMPTS = "prompts.json"  # the file beside the cells that has the number of pairs of each prompt


def run_cells(
    path: Path,
    cells: Sequence[Any],
    measure: Callable[[Any], dict[str, Any]],
    *,
    fingerprint: str,
    max_cells: int | None = None,
) -> None:
    """Measure the cells that `path` does not have, and append a line for each.

    An unfinished last line, which a killed run leaves, is removed first.

    Args:
        cells: frozen dataclasses.
        measure: returns the fields that are written beside those of the cell.
        fingerprint: names the data.
        max_cells: how many to measure at most; None for all.
    """
    done = set(_done(path))
    missing = [cell for cell in cells if _key(dataclasses.asdict(cell)) not in done][:max_cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        for index, cell in enumerate(missing, start=1):
            line = {"cell": dataclasses.asdict(cell), "data": fingerprint, **measure(cell)}
            file.write(json.dumps(line) + "\n")
            file.flush()
            if index % 20 == 0 or index == len(missing):
                each = (time.monotonic() - start) / index
                print(
                    f"{path.name}: {index} of {len(missing)} cells, {each:.2f} s each", flush=True
                )


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results; an empty list if the file does not exist."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _done(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    for line in text.splitlines():
        yield _key(json.loads(line)["cell"])


def _key(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)
