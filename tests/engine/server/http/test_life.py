"""The life of a server with an HTTP port: early calls, a reload, and the end."""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from subprocess import PIPE, Popen

import msgspec
import pytest

from kwise.engine.artifact.read import read_artifact
from tests.held_model import HeldModel, running_held_server
from tests.http_client import HttpConnection, ask, connected, http_port
from tests.servers import PATIENCE_S, Log, Server, running_server, wait_until

PROGRAM = Path(__file__).parents[3] / "programs" / "serve_after.py"
GROUP = {"prompt": "p", "responses": ["a", "b"]}


def test_calls_that_come_before_the_model_is_loaded_are_answered(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    """A FIFO holds the load until the test writes to it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = [sys.executable, str(PROGRAM), str(fifo), "serve", str(tiny_artifact)]
    options = ["--port", "0", "--http-port", "0"]
    process = Popen([*command, *options], stderr=PIPE, text=True, cwd=tiny_artifact)
    log = Log()
    reader = threading.Thread(target=log.read, args=(process, lambda _: None))
    reader.start()
    try:
        port = http_port(Server(process, 0, log), said="listening")
        early = [HttpConnection(port) for _ in range(200)]
        for connection in early:
            connection.send("POST", "/v1/rewards", GROUP)
        assert "serving" not in log.text
        descriptor = os.open(fifo, os.O_WRONLY)  # waits until the server reads
        assert "serving" not in log.text
        os.close(descriptor)
        for connection in early:
            assert connection.read().status == 200
            connection.socket.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()


def test_more_connections_at_once_than_the_soft_limit_of_files_are_answered(
    tiny_artifact: Path,
) -> None:
    """RL libraries open one per sample. With asyncio's loop, those over the limit wait for 1 s."""
    limited = ("sh", "-c", 'ulimit -S -n 100; exec "$0" "$@"', sys.executable, "-m", "kwise")
    options = ("--http-port", "0")
    with running_server(tiny_artifact, *options, entry_point=limited) as server:
        port = http_port(server)
        connections = [HttpConnection(port) for _ in range(400)]
        for connection in connections:
            connection.send("POST", "/v1/rewards", GROUP)
        for connection in connections:
            assert connection.read().status == 200
        for connection in connections:
            connection.socket.close()
        assert "out of system resource" not in server.log.text


def test_a_drain_refuses_new_calls_finishes_running_ones_and_listens_to_the_end(
    tiny_artifact: Path, held: HeldModel
) -> None:
    with running_held_server(tiny_artifact, held, "--http-port", "0") as server:
        port = http_port(server)
        held.hold()
        with (
            connected(port) as running,
            connected(port) as idle,
            connected(port) as probe,
            connected(port) as silent,
            connected(port) as scraper,
        ):
            assert idle.ask("GET", "/health").json == {"status": "SERVING"}
            running.send("POST", "/v1/rewards", GROUP)
            held.wait_for_batches(1)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: is_draining(port, probe))
            refused = idle.ask("POST", "/v1/rewards", GROUP)
            assert refused.status == 503
            scraped = scraper.ask("GET", "/metrics").body.decode()
            assert "\nkwise_draining 1.0\n" in scraped
            assert '\nkwise_rewards_in_flight{model="tiny"} 2.0\n' in scraped
            assert refused.json["error"]["code"] == "UNAVAILABLE"
            assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
            assert idle.is_closed()
            with connected(port) as knocking:
                knocking.send("POST", "/v1/rewards", GROUP)
                held.release()
                reply = running.read()
                assert reply.status == 200
                assert len(reply.json["scored"]["rewards"]) == 2
                assert server.process.wait(PATIENCE_S) == 0
                # One try of a client that knocks, and not one a second.
                assert knocking.is_closed()
            assert silent.is_closed()
    lines = [line for line in server.log.text.splitlines() if " INFO " not in line]
    assert lines == []


def is_draining(port: int, probe: HttpConnection) -> bool:
    """Ask for the health on a connection that is open, as those of new ones are not accepted."""
    try:
        reply = probe.ask("GET", "/health")
    except (ConnectionError, OSError):
        return True
    if reply.status == 200:
        return False
    assert (reply.status, reply.json) == (503, {"status": "NOT_SERVING"})
    assert reply.headers["connection"] == "close"
    return True


def test_requests_that_still_run_at_the_end_of_the_grace_get_503(
    tiny_artifact: Path, held: HeldModel
) -> None:
    options = ("--http-port", "0", "--grace-s", "0")
    with running_held_server(tiny_artifact, held, *options) as server:
        port = http_port(server)
        held.hold()
        with connected(port) as running:
            running.send("POST", "/v1/rewards", GROUP)
            held.wait_for_batches(1)
            server.process.send_signal(signal.SIGTERM)
            reply = running.read()
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert server.process.wait(PATIENCE_S) == 0


def test_a_reload_fails_no_call(tiny_artifact: Path, tmp_path: Path, held: HeldModel) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, artifact)
    old = read_artifact(artifact).manifest
    new = msgspec.structs.replace(old, reward_mean=1.0).signed()
    options = ("--http-port", "0", "--cache-bytes", "0")
    with running_held_server(artifact, held, *options) as server:
        port = http_port(server)
        held.hold()
        with connected(port) as running:
            running.send("POST", "/v1/rewards", GROUP)
            held.wait_for_batches(1)
            (artifact / "manifest.json").write_text(new.to_json())
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: ask(port, "GET", "/v1/model").json["fingerprint"] == new.fingerprint)
            held.release()
            before = running.read().json["scored"]
            after = running.ask("POST", "/v1/rewards", GROUP).json["scored"]
        assert (before["fingerprint"], after["fingerprint"]) == (old.fingerprint, new.fingerprint)
        for first, second in zip(before["rewards"], after["rewards"], strict=True):
            assert first["raw"] == pytest.approx(second["raw"], abs=1e-4)
            assert second["value"] == pytest.approx(first["value"] - 1, abs=1e-4)
