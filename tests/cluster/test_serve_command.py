"""`kwise serve --ray` as a process of its own, which joins a running cluster."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kwise import RewardClient
from kwise.cli import main
from tests.servers import PATIENCE_S, raw_rewards


def test_it_serves_until_sigterm_and_removes_the_application(
    ray_cluster: Any, serving: int, tiny_artifact: Path
) -> None:
    from ray import serve  # pyright: ignore[reportMissingImports]

    address = ray_cluster.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [sys.executable, "-m", "kwise", "serve", str(tiny_artifact), "--ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAY_ADDRESS": address},
    )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        line = next(line for line in lines if line.startswith("serving"))
        assert "the Serve that was running" in line
        with RewardClient(f"localhost:{serving}", timeout_s=PATIENCE_S) as client:
            assert len(raw_rewards(client.score("a prompt", ["a", "b"]))) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert "kwise" not in serve.status().applications


def test_an_artifact_that_is_missing_is_told_in_one_line(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path / "none"), "--ray"]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error and len(error.splitlines()) == 1


def test_a_port_out_of_range_is_told_without_ray(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "artifact", "--ray", "--port", "70000"]) == 2
    assert "--port is 70000" in capsys.readouterr().err
