"""What does the shared cache cost, with Redis healthy, slow and down, and what does it save?

Physics: a reward that the process has cached costs no round trip, whatever state Redis is in. A
reward that only Redis has costs one round trip instead of a pass of the model, and a new reward
costs two more (look-up and claim) unless Redis is known to fail. Servers with a small model show
this overhead at its largest.

Servers of one artifact differ in their Redis: none, healthy, slow (it accepts commands and answers
none: CLIENT PAUSE) and down (nothing listens). Calls go to them in turns within one run:

    cached      a group of nine that the process has cached
    in Redis    a group of nine that another server has computed
    new         a group of nine that nobody has computed
    first       the one call that finds out that Redis has become slow
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kwise.benchmarks.options import SharedCacheBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.serving.server_process import running_server
from kwise.client import RewardClient
from kwise.engine.artifact import read_artifact
from kwise.errors import ConfigError

_RESPONSES = [f"Number {n} is prime, because nothing else divides it." for n in range(9)]
_PATIENCE_S = 60
_NUM_WARM_UPS = 5


def run(config: SharedCacheBenchConfig) -> None:
    """Print the figures and write them to `config.json`."""
    if (program := shutil.which("redis-server")) is None:
        raise ConfigError("bench shared-cache needs the program redis-server on the PATH")
    artifact = read_artifact(Path(config.artifact))
    with ExitStack() as stack:
        healthy, slow = (stack.enter_context(_running_redis(program)) for _ in range(2))
        options: dict[str, tuple[str, ...]] = {
            "none": (),
            "healthy": ("--shared-cache", healthy),
            "slow": ("--shared-cache", slow),
            "down": ("--shared-cache", f"{healthy}-is-not-here"),
            "other": ("--shared-cache", healthy),
        }
        clients = {
            name: stack.enter_context(
                RewardClient(
                    stack.enter_context(
                        running_server(artifact, "--threads", "1", *options[name])
                    ).address
                )
            )
            for name in options
        }
        other = clients.pop("other")
        for client in (clients["healthy"], clients["slow"], other):
            _use_redis(client)
        first_ms = 1000 * _pause_and_measure(slow, clients["slow"])
        ms = _measure(clients, other, config.calls)
    ratios = _ratios(ms)
    results = {"ms": ms, "first_ms": first_ms, "ratios": ratios}
    for kind, of_redis in ms.items():
        shown = ", ".join(f"{name} {value:.2f} ms" for name, value in of_redis.items())
        relative = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios[kind].items())
        print(f"{kind:9} {shown}\n          relative to a server without one: {relative}")
    print(f"first     {first_ms:.1f} ms for the call that finds Redis slow")
    if config.json:
        write_results(config.json, "shared-cache", config, results)


def _measure(
    clients: dict[str, RewardClient], other: RewardClient, calls: int
) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each kind of call, by the state of Redis."""
    seconds: dict[str, dict[str, list[float]]] = {
        "cached": {name: [] for name in clients},
        "in Redis": {"healthy": []},
        "new": {name: [] for name in clients},
    }
    for client in clients.values():
        client.score("cached", _RESPONSES)
    for number in range(calls + _NUM_WARM_UPS):
        is_measured = number >= _NUM_WARM_UPS
        for name, client in clients.items():
            times = {
                "cached": _seconds(client, "cached"),
                "new": _seconds(client, f"new {number} {name}"),
            }
            for kind, value in times.items():
                seconds[kind][name] += [value] * is_measured
        prompt = f"in Redis {number}"
        _store(other, prompt)
        seconds["in Redis"]["healthy"] += [_seconds(clients["healthy"], prompt)] * is_measured
    return {
        kind: {name: 1000 * statistics.median(values) for name, values in of_redis.items()}
        for kind, of_redis in seconds.items()
    }


def _ratios(ms: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the times relative to those of the server without a shared cache.

    A reward that is in Redis is compared with one that is computed.
    """
    base = {"cached": ms["cached"]["none"], "in Redis": ms["new"]["none"], "new": ms["new"]["none"]}
    return {
        kind: {name: value / base[kind] for name, value in of_redis.items() if name != "none"}
        for kind, of_redis in ms.items()
    }


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
