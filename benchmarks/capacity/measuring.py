"""Measures a server: passes of known sizes, and the latency of calls that arrive at random."""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from kwise.benchmarks.capacity.load import arrival_times
from kwise.benchmarks.capacity.one_replica import capacity_per_s, text_seed
from kwise.benchmarks.capacity.options import QueueBenchConfig
from kwise.benchmarks.capacity.pass_time import (
    MeasuredPass,
    PassSize,
    fit_pass_time,
)
from kwise.benchmarks.capacity.replica import ReplicaConfig
from kwise.benchmarks.options import Cell
from kwise.benchmarks.serving.server_process import running_server
from kwise.client import AsyncRewardClient, RewardClient
from kwise.engine.artifact.read import Artifact
from kwise.engine.config import CPU_PROMPT_CACHE_BYTES, EngineConfig
from kwise.engine.precision import Precision
from kwise.engine.trie import KEY_BYTES

_TIMEOUT_S = 3600.0
# The prompts of timed passes are never asked for again, because the prompt cache would have them.
_TIMED_SEEDS = itertools.count(500_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Calls at one load, measured.

    timed: passes of known sizes, just before and just after the run.
    overhead_s: the time of a call to the idle server outside queue and model, then.
    seconds: the latency of each call, in order of arrival.
    busy_s, passes, rows: the server's counters over the run.
    max_late_s: the longest time by which a call was sent after its planned time.
    """

    load: float
    rate_per_s: float
    timed: list[MeasuredPass]
    overhead_s: float
    seconds: list[float]
    busy_s: float
    passes: int
    rows: int
    max_late_s: float

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Run":
        """Return the run that `asdict` wrote."""
        timed = [
            MeasuredPass(size=PassSize(**item["size"]), seconds=item["seconds"])
            for item in content["timed"]
        ]
        return cls(**{**content, "timed": timed})


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Everything measured with one seed.

    prompt_cache_tokens: the tokens that the server's prompt cache holds.
    capacity_per_s: the groups per second that the loads are relative to.
    """

    seed: int
    prompt_cache_tokens: int
    capacity_per_s: float
    runs: list[Run]

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Round":
        """Return the round that `asdict` wrote."""
        return cls(**{**content, "runs": [Run.read(item) for item in content["runs"]]})


def measure(
    artifact: Artifact,
    config: QueueBenchConfig,
    cell: Cell,
    on_run: Callable[[list[Round]], None],
) -> list[Round]:
    """Run a server, and return one round per seed. `on_run` gets all rounds after each run."""
    vocab_size = artifact.manifest.vocab_size
    cache_tokens = CPU_PROMPT_CACHE_BYTES // state_bytes(artifact)
    rounds: list[Round] = []
    with running_server(artifact, "--cache-bytes", "0") as server:
        for seed in config.seeds:
            _time_passes(cell, vocab_size, server.address, 1)  # the first passes warm up
            timed, overhead_s = _time_passes(cell, vocab_size, server.address, config.repeats)
            replica = ReplicaConfig(
                pass_time=fit_pass_time(timed),
                overhead_s=overhead_s,
                prompt_cache_tokens=cache_tokens,
            )
            capacity = capacity_per_s(cell, vocab_size, replica)
            runs: list[Run] = []
            rounds.append(
                Round(
                    seed=seed,
                    prompt_cache_tokens=cache_tokens,
                    capacity_per_s=capacity,
                    runs=runs,
                )
            )
            for load in config.loads:
                sent = _send(cell, vocab_size, server.address, config.groups, seed, load * capacity)
                figures = asyncio.run(sent)
                after, after_s = _time_passes(cell, vocab_size, server.address, config.repeats)
                runs.append(
                    Run(
                        load=load,
                        rate_per_s=load * capacity,
                        timed=timed + after,
                        overhead_s=(overhead_s + after_s) / 2,
                        **figures,
                    )
                )
                timed, overhead_s = after, after_s
                print(f"seed {seed}, load {load:.0%}: measured", flush=True)
                on_run(rounds)
    return rounds


def state_bytes(artifact: Artifact) -> int:
    """Return the bytes of a token in the prompt cache: its key, and keys and values in fp32."""
    path = artifact.graph_path(Precision.FP32)
    inputs = onnx.load(path, load_external_data=False).graph.input
    widths: list[int] = [
        value.type.tensor_type.shape.dim[1].dim_value
        for value in inputs
        if value.name.startswith("past.")
    ]
    return KEY_BYTES + 4 * sum(widths)


def timed_sizes(cell: Cell) -> list[Cell]:
    """Return groups of different rows and pairs, each at most one batch, around the size `cell`."""
    P, R, K = cell.P, cell.R, cell.K
    short, some = Cell(P=max(P // 4, 1), R=max(R // 2, 1), K=K), max(K // 3, 1)
    cells = [replace(cell, K=k) for k in sorted({1, some, max(2 * K // 3, 1), K, K + some})]
    cells += [short, replace(short, K=1)]
    cells += [Cell(P=4 * P, R=R, K=k) for k in sorted({1, some, max(2 * K // 3, 1)})]
    max_rows = EngineConfig().effective_max_batch_tokens
    return [size for size in cells if PassSize.of_group(size).rows <= max_rows]


def _time_passes(
    cell: Cell, vocab_size: int, address: str, repeats: int
) -> tuple[list[MeasuredPass], float]:
    """Return passes of different sizes, and the seconds of a call outside queue and model.

    A call to an idle server is one pass, and the reply says how long it took.
    """
    sizes, rng = timed_sizes(cell), random.Random(0)
    passes, overheads = [], []
    with RewardClient(address) as client:
        for _ in range(repeats):
            for size in rng.sample(sizes, len(sizes)):
                prompt, responses = size.request(vocab_size, next(_TIMED_SEEDS))
                started = time.perf_counter()
                scored = client.score(prompt, responses, timeout_s=_TIMEOUT_S)
                elapsed_s = time.perf_counter() - started
                model_s = scored.timing.model_ms / 1000
                passes.append(MeasuredPass(size=PassSize.of_group(size), seconds=model_s))
                overheads.append(elapsed_s - model_s)
    return passes, statistics.median(overheads)


async def _send(
    cell: Cell,
    vocab_size: int,
    address: str,
    groups: int,
    seed: int,
    rate_per_s: float,
) -> dict[str, Any]:
    """Send the seed's groups to a server at the seed's times; return measured fields of `Run`."""
    requests = [cell.request(vocab_size, text_seed(seed, number)) for number in range(groups)]
    async with AsyncRewardClient(address) as client:
        await client.wait_until_ready()

        async def call(number: int) -> None:
            await client.score(*requests[number], timeout_s=_TIMEOUT_S)

        before = (await client.get_model()).counters
        figures = await at_times(arrival_times(rate_per_s, groups, seed), call)
        after = (await client.get_model()).counters
    return {
        **figures,
        "busy_s": after.busy_s - before.busy_s,
        "passes": after.model_passes - before.model_passes,
        "rows": after.rows - before.rows,
    }


async def at_times(
    times: Sequence[float], call: Callable[[int], Coroutine[Any, Any, None]]
) -> dict[str, Any]:
    """Make call number n at `times[n]`, without waiting for replies; return how long each took."""
    start_s, late = time.perf_counter(), [0.0]

    async def at_time(number: int) -> float:
        await asyncio.sleep(start_s + times[number] - time.perf_counter())
        sent_s = time.perf_counter()
        late.append(sent_s - start_s - times[number])
        await call(number)
        return time.perf_counter() - sent_s

    seconds = await asyncio.gather(*map(at_time, range(len(times))))
    return {"seconds": seconds, "max_late_s": max(late)}
