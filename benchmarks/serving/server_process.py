"""`kwise serve` as a child process, and the memory of a process."""

import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kwise.engine.artifact.read import Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A running server.

    Attributes:
        process: its process.
        address: HOST:PORT of its gRPC port.
        http_address: HOST:PORT of its HTTP port; "" unless the options have `--http-port 0`.
    """

    process: "subprocess.Popen[str]"
    address: str
    http_address: str


@contextmanager
def running_server(artifact: Artifact, *options: str) -> Iterator[ServerProcess]:
    """Run a server on a free port and yield it; stop it at the end.

    A thread reads its log all the time, because a full pipe would block the server.

    Raises:
        RuntimeError: the server does not start; the message has its log.
    """
    command = [sys.executable, "-m", "kwise", "serve", str(artifact.path), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log: deque[str] = deque(maxlen=50)
    address = http_address = ""
    for line in process.stderr:
        log.append(line)
        if match := re.search(r"serving on http://(\S+:\d+)$", line.strip()):
            http_address = match.group(1)
        if match := re.search(r"serving .* on (\S+:\d+)$", line.strip()):
            address = match.group(1)
            break
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        if not address:
            raise RuntimeError("the server ended at start-up: " + "".join(log))
        yield ServerProcess(process=process, address=address, http_address=http_address)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        reader.join()
        process.stderr.close()


def memory_bytes(pid: int, field: str) -> int:
    """Return the memory of a process: "VmRSS" (resident now) or "VmHWM" (the peak)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process's threads so far, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
