"""Runs of `kwise rerank` for the tests: inputs, the command, its output."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kwise.cli import main

Row = dict[str, Any]


def groups(count: int, *, responses: int = 3) -> list[Row]:
    """Return rows with different prompts of different lengths, and one in four a conversation."""
    rows = []
    for number in range(count):
        words = " ".join(f"word{number * position % 97}" for position in range(number % 13 + 1))
        text = f"Question {number}: {words}?"
        prompt: Any = text
        if number % 4 == 3:
            prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        answers = [f"Answer {index} to {words[: 7 * index]}" for index in range(responses)]
        rows.append({"id": f"r{number}", "prompt": prompt, "responses": answers})
    return rows


def write_lines(path: Path, rows: Iterable[Row | str]) -> Path:
    """Write rows as JSON Lines; a str is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[Row]:
    """Return the rows of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rerank(given: Path | str, output: Path | str, *options: str | Path) -> int:
    """Run `kwise rerank` in this process, and return its exit code."""
    return main(["rerank", str(given), str(output), *map(str, options)])
