"""Servers for tests: `kwise serve` as a process of its own, on a real socket."""

import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from kwise.types import Reward, ScoredGroup

# How long anything may take before a test gives up on it. No test's outcome depends on it: it only
# turns a test that would hang into one that fails.
PATIENCE_S = 120


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until `condition()` is true. Used for states of other processes."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, "the condition did not come true"
        time.sleep(0.005)


def raw_rewards(scored: object) -> list[float]:
    """Return the raw rewards of a scored group, and fail if one of them is an error."""
    assert isinstance(scored, ScoredGroup), scored
    assert all(isinstance(reward, Reward) for reward in scored.rewards), scored.rewards
    return [reward.raw for reward in scored.rewards if isinstance(reward, Reward)]


@contextmanager
def running_server(
    artifact: Path | Sequence[str],
    *options: str,
    entry_point: Sequence[str] = (sys.executable, "-m", "kwise"),
    pass_fds: Sequence[int] = (),
) -> Iterator["Server"]:
    """Run `kwise serve` in a process of its own on a free port, and stop it at the end.

    Args:
        artifact: the artifact to serve, or several arguments of the form NAME=DIRECTORY.
    """
    served = [str(artifact)] if isinstance(artifact, Path) else artifact
    directory = artifact if isinstance(artifact, Path) else None
    command = [*entry_point, "serve", *served, "--port", "0", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=directory, pass_fds=pass_fds
    )
    log, ports = Log(), queue.SimpleQueue[int | None]()
    reader = threading.Thread(target=log.read, args=(process, ports.put))
    reader.start()
    try:
        if (port := ports.get()) is None:
            raise AssertionError(f"the server ended at start-up: {log.text}")
        yield Server(process, port, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(PATIENCE_S) is not None
        finally:
            process.kill()
            reader.join()


class Log:
    """The text that a server writes to standard error.

    A thread reads it all the time, because a full pipe would stop the server.
    """

    def __init__(self) -> None:
        self.text = ""

    def read(
        self, process: "subprocess.Popen[str]", report_port: Callable[[int | None], None]
    ) -> None:
        """Read until the process ends. Report its port once it serves, and None at the end."""
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self.text += line
                if match := re.search(r'serving .* on [^\s"]+:(\d+)("}|$)', line.strip()):
                    report_port(int(match.group(1)))
        report_port(None)


class Server:
    """A running server: its process, address and log, and a stub to call it with."""

    def __init__(self, process: "subprocess.Popen[str]", port: int, log: Log) -> None:
        self.process = process
        self.address = f"localhost:{port}"
        self.log = log

    @contextmanager
    def stub(self) -> Iterator[Any]:
        from kwise.protos.kwise.v1 import reward_pb2_grpc

        options = [("grpc.max_receive_message_length", 64 << 20)]
        with grpc.insecure_channel(self.address, options) as channel:
            yield reward_pb2_grpc.RewardServiceStub(channel)
