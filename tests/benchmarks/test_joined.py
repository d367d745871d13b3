"""`kwise bench joined` with a tiny model: all calls are answered over both protocols."""

import json
from pathlib import Path

import pytest

from kwise.cli import main


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_single_calls_are_compared_with_whole_groups(
    protocol: str, tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "joined.json"
    options = ["--prompts", "4", "--cell", "12/6/3", "--clients", "1", "--repeats", "1"]
    options += ["--json", str(path), *(["--http"] if protocol == "http" else [])]
    assert main(["bench", "joined", str(tiny_artifact), *options]) == 0
    printed = capsys.readouterr().out
    assert all(way in printed for way in ("whole groups:", "at once:", "staggered:"))
    written = json.loads(path.read_text())
    assert written["protocol"] == protocol
    # A prompt that two batches computed would add its rows.
    assert all(rows > 0 for rows in written["rows"]["at once"])
