"""A server that is told to end while it loads its artifact, or another one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kwise.client import RewardClient
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import MANIFEST
from tests.servers import PATIENCE_S, raw_rewards, running_server, wait_until

# `kwise`, except that the second artifact takes for ever to load.
HELD = """
import sys, threading
from kwise.cli import main
from kwise.engine.scorer import Scorer

load, loaded = Scorer.load, []

def held(*arguments):
    if loaded:
        threading.Event().wait()
    loaded.append(arguments)
    return load(*arguments)

Scorer.load = held
sys.exit(main(sys.argv[1:]))
"""


def test_sigterm_does_not_wait_for_a_reload(tiny_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "served"
    shutil.copytree(tiny_artifact, path)
    with running_server(path, entry_point=(sys.executable, "-c", HELD)) as server:
        changed = msgspec.structs.replace(read_manifest(path), reward_mean=7.0).signed()
        (path / MANIFEST).write_text(changed.to_json())
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload: loading" in server.log.text)
        with RewardClient(server.address, timeout_s=PATIENCE_S) as client:
            assert len(raw_rewards(client.score("Still there?", ["Yes."]))) == 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log.text


# `kwise`, except that no artifact is ever loaded.
NEVER_LOADED = """
import signal, sys, time
from kwise.cli import main
from kwise.engine.scorer import Scorer

def held(*arguments):
    print("loading", flush=True)
    while True:  # time.sleep goes on after a signal whose handler returns, as a library's code does
        time.sleep(3600)

Scorer.load = held
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_server_that_loads_its_first_artifact(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", NEVER_LOADED, "serve", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == -number
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_process_1_of_a_container_that_loads_its_first_artifact(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The kernel ignores signals to process 1 that have no handler."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this machine makes no namespaces")
    command = [sys.executable, "-c", NEVER_LOADED, "serve", str(tmp_path), "--port", "0"]
    with subprocess.Popen([*unshare, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children), number)
            assert process.wait(PATIENCE_S) == 128 + number
        finally:
            process.kill()
