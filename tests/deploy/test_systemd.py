"""The units: verified, and the command line that they start is taken, served, reloaded, stopped."""

import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.deploy.tools import DEPLOY, lint, linter, parsed
from tests.servers import PATIENCE_S, wait_until
from tests.service_manager import KWISE, notified

UNITS = DEPLOY / "systemd"
PROGRAM = "/opt/kwise/bin/kwise"


def settings(unit: str) -> dict[str, list[str]]:
    """Return the values of each setting of a unit."""
    values: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text(encoding="utf-8").replace("\\\n", "").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            values.setdefault(name, []).append(value)
    return values


def command_line() -> list[str]:
    """Return the arguments of kwise in kwise.service, without those of the operator."""
    (line,) = settings("kwise.service")["ExecStart"]
    program, *arguments = shlex.split(line)
    assert program == PROGRAM and arguments.pop() == "$KWISE_OPTIONS"
    return arguments


def test_systemd_analyze_verifies_every_unit(tmp_path: Path) -> None:
    """It wants programs that exist, so kwise is replaced by one that does."""
    units = []
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        text = unit.read_text(encoding="utf-8")
        units.append(tmp_path / unit.name)
        units[-1].write_text(text.replace(PROGRAM, shutil.which("true") or ""))
    assert len(units) == 4
    assert lint("systemd-analyze", "verify", "--recursive-errors=no", *units) == ""


@pytest.mark.parametrize("unit", ["kwise.service", "kwise-grpc.service"])
def test_systemd_analyze_finds_little_exposure(unit: str) -> None:
    """1.4 of 10 was measured. Most of the rest is the network, which a server needs."""
    options = ("--offline=yes", "--threshold=15", "--no-pager")
    assert "Overall exposure level" in lint("systemd-analyze", "security", *options, UNITS / unit)


def test_the_units_fit_each_other() -> None:
    service, config = settings("kwise.service"), parsed(command_line())
    assert config.http_port is None  # kwise.socket has it
    assert settings("kwise.socket")["FileDescriptorName"] == ["http"]
    assert service["Requires"] == ["kwise.socket"]
    assert float(service["TimeoutStopSec"][0]) >= config.grace_s + 5
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    # The optional proxy listens where the server does without it.
    assert settings("kwise-grpc.socket")["ListenStream"] == [str(config.port)]
    (proxy,) = settings("kwise-grpc.service")["ExecStart"]
    host, port = proxy.rpartition(" ")[2].split(":")
    moved = f"--host {host} --port {port}"
    assert moved in (UNITS / "kwise-grpc.service").read_text(encoding="utf-8")
    assert moved in (DEPLOY.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert parsed([*command_line(), *moved.split()]).port == int(port)
    (group,) = service["SupplementaryGroups"]
    users = (UNITS / "kwise.sysusers.conf").read_text(encoding="utf-8")
    assert f"\ng {group} -\n" in users


def test_the_command_line_is_served_by_socket_activation(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    activate = linter("systemd-socket-activate")
    pair = Authority(tmp_path).sign("server")
    (tmp_path / "tokens").write_text("job:0123456789abcdef\n")
    replaced = {
        "/srv/kwise/artifact": str(tiny_artifact),
        "/etc/kwise/tokens": str(tmp_path / "tokens"),
        "/etc/kwise/tls.crt": str(pair.cert),
        "/etc/kwise/tls.key": str(pair.key),
    }
    arguments = [replaced.get(each, each) for each in command_line()]
    assert set(replaced.values()) <= set(arguments)
    arguments += ["--host", "127.0.0.1", "--port", "0"]
    # An address of this process alone, so that the port of the unit is free.
    pid = os.getpid()
    (port,) = settings("kwise.socket")["ListenStream"]
    address = f"127.{pid >> 16 & 255}.{pid >> 8 & 255}.{pid & 127 | 1}:{port}"
    log = tmp_path / "log"
    with notified() as states, log.open("w") as errors:
        passed = {name: os.environ.get(name) for name in ("PYTHONPATH", "HOME", "NOTIFY_SOCKET")}
        options = [f"-E{name}={value}" for name, value in passed.items() if value]
        command = [activate, f"--listen={address}", "--fdname=http", *options, *KWISE, *arguments]
        process = subprocess.Popen(command, stderr=errors, cwd=DEPLOY.parent)
        try:
            wait_until(lambda: accepts(address))
            unverified = ssl.create_default_context(cafile=tmp_path / "authority.pem")
            unverified.check_hostname = False
            for path in ("/livez", "/readyz"):  # the first one starts the server
                url = f"https://{address}{path}"
                with urllib.request.urlopen(url, timeout=PATIENCE_S, context=unverified) as reply:
                    assert reply.status == 200
            ready = states.next()
            assert ready["READY"] == "1" and ready["STATUS"].startswith("serving tiny ")
            process.send_signal(signal.SIGHUP)  # ExecReload
            assert states.next()["RELOADING"] == "1"
            assert states.next() == ready
            process.send_signal(signal.SIGTERM)
            assert states.next()["STOPPING"] == "1"
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()
    assert f"serving on https://{address}" in log.read_text()


def accepts(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return False
    return True
