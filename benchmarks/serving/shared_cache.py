"""Measure what the shared cache costs and saves, with Redis healthy, slow and down.

Physics: a reward that the process has cached costs no round trip, whatever state Redis is in. A
reward that only Redis has costs one round trip instead of a pass of the model, and a new reward
costs two more (look-up and claim) unless Redis is known to fail. Servers with a small model show
this overhead at its largest.

The server's CPU time is measured too, because on a busy machine the time of a call also depends on
the other programs.

Servers of one artifact differ in their Redis: none, healthy, slow (it accepts commands and answers
none: CLIENT PAUSE) and down (nothing listens). Calls alternate between them within one run:

    cached      a group of nine that the process has cached
    in Redis    a group of nine that another server has computed
    new         a group of nine that no server has computed
    first       the call during which the server notices that Redis has become slow
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kwise.benchmarks.options import SharedCacheBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.serving.server_process import cpu_s, running_server
from kwise.client import RewardClient
from kwise.engine.artifact.read import read_artifact
from kwise.errors import ConfigError

_RESPONSES = [f"Number {n} is prime, because nothing else divides it." for n in range(9)]
_PATIENCE_S = 60
_CACHED_CALLS = 5  # for each other call, because they are short
# Each kind of call with the kind to which it is compared, on the server without a shared cache.
_BASES = {"cached": "cached", "in Redis": "new", "new": "new"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    client: RewardClient
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """Milliseconds of a call (the median of several), and of the server's CPU time (the mean)."""

    ms: float
    cpu_ms: float


_Round = dict[tuple[str, str], _Cost]  # by kind of call and state of Redis


def run(config: SharedCacheBenchConfig) -> None:
    """Print the figures and write them to `config.json`."""
    if (program := shutil.which("redis-server")) is None:
        raise ConfigError("bench shared-cache needs the program redis-server on the PATH")
    artifact = read_artifact(Path(config.artifact))
    servers: dict[str, _Server] = {}
    with ExitStack() as stack:
        healthy, slow = (stack.enter_context(_running_redis(program)) for _ in range(2))
        down = f"{healthy}-is-not-here"
        urls = {"none": "", "healthy": healthy, "slow": slow, "down": down, "other": healthy}
        for name, url in urls.items():
            options = ("--shared-cache", url) if url else ()
            process = stack.enter_context(running_server(artifact, "--threads", "1", *options))
            client = stack.enter_context(RewardClient(process.address))
            servers[name] = _Server(client=client, pid=process.process.pid)
        for name in ("healthy", "slow", "other"):
            _use_redis(servers[name].client)
        first_ms = 1000 * _pause_and_measure(slow, servers["slow"].client)
        rounds = [_round(servers, number, config.calls) for number in range(config.repeats + 1)]
    results = _summary(rounds[1:])
    for name, figures in results.items():
        print(
            "{:17} {ms:7.2f} ms, ratio {ratio:.2f}; CPU {cpu_ms:6.2f} ms, ratio "
            "{cpu_ratio:.2f}".format(name, **figures)
        )
    print(f"first             {first_ms:7.2f} ms")
    if config.json:
        write_results(config.json, "shared-cache", config, {"first_ms": first_ms, **results})


def _round(servers: dict[str, _Server], number: int, calls: int) -> _Round:
    """Measure each kind of call once on each server, in turns."""
    costs: _Round = {}
    names = ["none", "healthy", "slow", "down"]
    for name in names[number % 4 :] + names[: number % 4]:  # another one goes first in each round
        servers[name].client.score("cached", _RESPONSES)
        costs["cached", name] = _burst(servers[name], ["cached"] * (_CACHED_CALLS * calls))
        costs["new", name] = _burst(servers[name], [f"{name} {number} {i}" for i in range(calls)])
    prompts = [f"in Redis {number} {i}" for i in range(calls)]
    for prompt in prompts:
        _store(servers["other"].client, prompt)
    costs["in Redis", "healthy"] = _burst(servers["healthy"], prompts)
    return costs


def _burst(server: _Server, prompts: Sequence[str]) -> _Cost:
    """Return the cost of a call, of one call per prompt in a row."""
    before_s = cpu_s(server.pid)
    seconds = [_seconds(server.client, prompt) for prompt in prompts]
    cpu_ms = 1000 * (cpu_s(server.pid) - before_s) / len(prompts)
    return _Cost(ms=1000 * statistics.median(seconds), cpu_ms=cpu_ms)


def _summary(rounds: Sequence[_Round]) -> dict[str, dict[str, float]]:
    """Return medians over the rounds, of costs and of ratios within one round."""
    summary = {}
    for kind, name in sorted(rounds[0]):
        pairs = [(r[kind, name], r[_BASES[kind], "none"]) for r in rounds]
        summary[f"{kind}, {name}"] = {
            "ms": statistics.median(cost.ms for cost, _ in pairs),
            "ratio": statistics.median(cost.ms / base.ms for cost, base in pairs),
            "cpu_ms": statistics.median(cost.cpu_ms for cost, _ in pairs),
            "cpu_ratio": statistics.median(cost.cpu_ms / base.cpu_ms for cost, base in pairs),
        }
    return summary


def _use_redis(client: RewardClient) -> None:
    """Wait until the server has stored a reward in Redis."""
    numbers = iter(range(10**9))

    def is_stored() -> bool:
        client.score(f"connected {next(numbers)}", _RESPONSES[:1])
        return client.get_model().counters.shared_stored > 0

    _wait_until(is_stored)


def _pause_and_measure(url: str, client: RewardClient) -> float:
    """Make Redis answer nothing from now on, and return the seconds of the next call."""
    import redis

    with redis.Redis.from_url(url) as connection:
        connection.client_pause(10**9)
    return _seconds(client, "first")


def _store(client: RewardClient, prompt: str) -> None:
    """Score a group, and wait until Redis has its rewards."""
    expected = client.get_model().counters.shared_stored + len(_RESPONSES)
    client.score(prompt, _RESPONSES)
    _wait_until(lambda: client.get_model().counters.shared_stored == expected)


def _seconds(client: RewardClient, prompt: str) -> float:
    """Return the time of one call."""
    started = time.perf_counter()
    client.score(prompt, _RESPONSES)
    return time.perf_counter() - started


@contextmanager
def _running_redis(program: str) -> Iterator[str]:
    """Run a redis-server on a Unix socket, and yield its URL."""
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory) / "redis"
        command = [program, "--port", "0", "--unixsocket", str(socket), "--save", ""]
        process = subprocess.Popen([*command, "--dir", directory], stdout=subprocess.DEVNULL)
        try:
            _wait_until(socket.exists)
            yield f"unix://{socket}"
        finally:
            process.kill()
            process.wait()


def _wait_until(condition: Callable[[], bool]) -> None:
    """Poll until `condition()` is true.

    Raises:
        RuntimeError: it does not become true.
    """
    give_up_at = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise RuntimeError("a server or redis-server does not get ready")
        time.sleep(0.01)
