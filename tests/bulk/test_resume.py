"""A run that is killed goes on: each group once, and the bytes of an undisturbed run."""

import fcntl
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bulk.runs import groups, read_lines, rerank, write_lines
from tests.servers import PATIENCE_S

_STOP_AT_ROW = str(Path(__file__).parents[1] / "programs" / "stop_at_row.py")
_WINDOWS = ["--window-tokens", "1024"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for several hundred windows; some are bad."""
    path = tmp_path_factory.mktemp("rows") / "in.jsonl"
    given: list[dict[str, object] | str] = [*groups(300, responses=4)]
    for place in (5, 120, 299):
        given.insert(place, "not JSON")
    return write_lines(path, given)


def stopped(stop: signal.Signals, row: int, *arguments: str) -> tuple[int, str]:
    """Run `kwise rerank` until it writes a row; return its exit status and standard error."""
    command = [sys.executable, _STOP_AT_ROW, stop.name, str(row), "rerank", *arguments]
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    return process.returncode, process.stderr


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, rows: Path, tiny_artifact: Path, name: str
) -> None:
    options = ["--artifact", str(tiny_artifact), "--threads", "1", *_WINDOWS]
    assert rerank(rows, tmp_path / f"whole.{name}", *options) == 1
    output, partial = tmp_path / name, tmp_path / f"{name}.partial"
    arguments = [str(rows), str(output), *options, "--resume"]
    # The second number counts the rows that are left. A window has fewer rows than either.
    for row in (random.Random(name).randrange(40, 120), random.Random(name).randrange(40, 120)):
        assert stopped(signal.SIGKILL, row, *arguments)[0] == -signal.SIGKILL
        assert json.loads(output.with_name(f"{name}.run.json").read_text())["output_bytes"] > 0
    assert rerank(rows, output, *options, "--resume") == 1
    assert output.read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
    bad = [tmp_path / f"{prefix}{name}.bad.jsonl" for prefix in ("", "whole.")]
    assert bad[0].read_bytes() == bad[1].read_bytes()
    assert len(read_lines(bad[0])) == 3
    assert not partial.exists()
    # Once more: it is complete, and stays as it is.
    assert rerank(rows, output, *options, "--resume") == 1


@pytest.fixture
def unfinished(tmp_path: Path, rows: Path, tiny_artifact: Path) -> list[str]:
    """The arguments of a run that was killed."""
    output = tmp_path / "out.jsonl"
    arguments = [str(rows), str(output), "--artifact", str(tiny_artifact), *_WINDOWS]
    assert stopped(signal.SIGKILL, 60, *arguments)[0] == -signal.SIGKILL
    return arguments


def test_a_resumed_run_must_be_the_same_run(
    tmp_path: Path,
    rows: Path,
    unfinished: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def problem(*arguments: str) -> str:
        assert rerank(arguments[0], arguments[1], *arguments[2:]) == 2
        return capsys.readouterr().err

    assert "--resume goes on with it" in problem(*unfinished)
    assert "--write is ranks, and was rewards" in problem(
        *unfinished, "--resume", "--write", "ranks"
    )
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(rows.read_bytes())
    changed = [str(copy), *unfinished[1:], "--resume"]
    assert f"{copy} has changed since" in problem(*changed)
    record = tmp_path / "out.jsonl.run.json"
    text = record.read_text()
    record.write_text(text.replace('"fingerprint": "', '"fingerprint": "0'))
    assert "the model's fingerprint was 0" in problem(*unfinished, "--resume")
    record.write_text("{}")
    assert "is not the record of a run" in problem(*unfinished, "--resume")
    record.write_text(text)
    assert rerank(unfinished[0], unfinished[1], *unfinished[2:], "--resume") == 1


def test_two_runs_do_not_write_the_same_output(
    tmp_path: Path, rows: Path, tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "out.jsonl.partial"
    with partial.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        options = ["--artifact", str(tiny_artifact), "--overwrite"]
        assert rerank(rows, tmp_path / "out.jsonl", *options) == 2
    assert f"another process writes {partial}" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, rows: Path, tiny_artifact: Path) -> None:
    output = tmp_path / "out.jsonl"
    arguments = [str(rows), str(output), "--artifact", str(tiny_artifact), *_WINDOWS]
    status, errors = stopped(signal.SIGINT, 60, *arguments)
    assert status == 130
    assert "The same command with --resume goes on" in errors
    assert "Traceback" not in errors
    assert rerank(rows, output, *arguments[2:], "--resume") == 1
    assert rerank(rows, tmp_path / "whole.jsonl", *arguments[2:]) == 1
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
