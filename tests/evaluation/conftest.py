"""Rankings in a file, and a function that runs `kwise eval`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kwise.cli import main
from kwise.evaluation.report.json import read_json
from kwise.evaluation.result import Evaluation
from tests.real_data import ROOT

EXAMPLES = ROOT / "examples" / "rankings.jsonl"
LONG = "word " * 400


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Twelve of the example rankings."""
    path = tmp_path / "examples.jsonl"
    lines = EXAMPLES.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:12]), encoding="utf-8")
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A ranking, one with a long response, one that is one tie, and another ranking."""
    rankings = [(["Yes.", "No."], [1, 2]), (["Yes.", LONG], [1, 2]), (["a", "b"], [1, 1])]
    rankings.append((["Perhaps.", "No.", "So-so."], [2, 3, 1]))
    path = tmp_path / "mixed.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, (texts, ranks) in enumerate(rankings):
            responses = [{"text": t, "rank": r} for t, r in zip(texts, ranks, strict=True)]
            file.write(json.dumps({"prompt": f"Question {number}?", "responses": responses}) + "\n")
    return path


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., tuple[int, Evaluation]]:
    """A function that evaluates, and returns the exit code and the result that it reads again."""

    def run(model: object, data: Path, *options: str) -> tuple[int, Evaluation]:
        path = tmp_path / "result.json"
        path.unlink(missing_ok=True)  # a run that fails must not return the result before it
        words = ["eval", str(model), str(data), "--json", str(path), "--overwrite"]
        code = main([*words, "--resamples", "100", *options])
        return code, read_json(path)

    return run
