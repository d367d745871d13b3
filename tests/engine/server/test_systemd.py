"""Sockets that systemd passes to a server, and what it is told."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwise.engine.server.config import ServerConfig
from kwise.engine.server.security.exposure import check_exposure
from kwise.engine.server.systemd import http_sockets, notify_ready
from kwise.errors import ConfigError
from tests.http_client import connected
from tests.servers import PATIENCE_S, running_server
from tests.service_manager import KWISE, activated, notified

GROUP = {"prompt": "p", "responses": ["a", "b"]}
TAKE = (
    "from kwise.engine.server.systemd import http_sockets\n"
    "from kwise.engine.server.config import ServerConfig\n"
    "http_sockets(ServerConfig(http_port={http_port}))"
)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        yield passed


def test_a_restart_on_a_passed_socket_loses_no_call(
    tiny_artifact: Path, listening: socket.socket
) -> None:
    """A connection that comes while no server runs waits in the socket, which systemd keeps."""
    port, fds = listening.getsockname()[1], (listening.fileno(),)
    entry_point = activated(*KWISE, listening=listening)
    for _ in range(2):
        with connected(port) as early:
            early.send("POST", "/v1/rewards", GROUP)
            with running_server(tiny_artifact, entry_point=entry_point, pass_fds=fds) as server:
                assert early.read().status == 200
                assert f"serving on http://127.0.0.1:{port}" in server.log.text
            assert server.process.returncode == 0


def test_systemd_is_told_when_the_server_is_ready_reloads_and_stops(tiny_artifact: Path) -> None:
    with notified() as states, running_server(tiny_artifact) as server:
        ready = states.next()
        assert ready["READY"] == "1" and ready["STATUS"].startswith("serving tiny ")
        server.process.send_signal(signal.SIGHUP)
        reloading = states.next()
        assert reloading["RELOADING"] == "1" and int(reloading["MONOTONIC_USEC"]) > 0
        assert states.next() == ready
        server.process.send_signal(signal.SIGTERM)
        assert states.next()["STOPPING"] == "1"
        assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("name", "http_port", "problem"),
    [
        ("grpc", None, "a socket named 'grpc', and only HTTP takes one"),
        ("kwise.socket", None, "set FileDescriptorName=http in its socket unit"),
        ("", None, "a socket named 'unknown'"),
        ("http", 8000, "--http-port is 8000, and systemd passes a socket for HTTP"),
    ],
)
def test_a_socket_that_is_not_for_http_is_refused(
    listening: socket.socket, name: str, http_port: int | None, problem: str
) -> None:
    assert problem in refusal(listening, name, http_port)


def test_a_socket_that_does_not_listen_on_tcp_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as bound:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        for passed in (unix, bound):
            assert "does not listen on TCP: set ListenStream=" in refusal(passed, "http")


def refusal(passed: socket.socket, name: str, http_port: int | None = None) -> str:
    """Return what a process says that asks for the sockets and is passed one."""
    code = (sys.executable, "-W", "ignore::ResourceWarning", "-c", TAKE.format(http_port=http_port))
    command = activated(*code, listening=passed, name=name)
    done = subprocess.run(command, pass_fds=(passed.fileno(),), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "ConfigError" in done.stderr
    return done.stderr


def test_sockets_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert http_sockets(ServerConfig()) == []


def test_a_passed_socket_that_other_machines_reach_needs_credentials() -> None:
    with socket.create_server(("0.0.0.0", 0)) as public:
        port = public.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^the socket 0\.0\.0\.0:{port} that systemd"):
            check_exposure(ServerConfig(), [public])
        check_exposure(ServerConfig(token_file=Path("tokens")), [public])
    with socket.create_server(("127.0.0.1", 0)) as private:
        check_exposure(ServerConfig(), [private])


def test_the_socket_of_messages_may_have_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"kwise-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify_ready("serving")
        assert receiver.recv(100) == b"READY=1\nSTATUS=serving"


def test_nobody_who_listens_for_messages_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "missing"))
    with caplog.at_level(logging.WARNING):
        notify_ready("serving")
    assert caplog.messages == ["systemd is not told READY=1: No such file or directory"]
