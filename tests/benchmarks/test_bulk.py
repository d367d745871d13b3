"""`kwise bench bulk` with a tiny model: every way scores the same groups."""

import json
from pathlib import Path

import pytest

from kwise.cli import main


def test_reranking_is_compared_with_the_session_and_with_transformers(
    tiny_artifact: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bulk.json"
    options = ["--cell", "12/6/3", "--groups", "4", "--repeats", "1", "--batch-sizes", "1", "3"]
    options += ["--checkpoint", str(tiny_checkpoint), "--json", str(path)]
    assert main(["bench", "bulk", str(tiny_artifact), *options]) == 0
    assert "in CPU time) and" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert written["share_of_session"] > 0 and written["times_pipeline"] > 0
    assert list(written["rounds"][0]["pipeline_per_s"]) == ["1", "3"]
