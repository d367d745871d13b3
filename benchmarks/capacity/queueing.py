"""Does the simulation reproduce the queue of a real server?

Physics: one server is a queue with one pass at a time. Groups arrive at random (Poisson, an open
loop), so latency is the wait for earlier work and the pass itself. Near capacity the wait decides,
and it magnifies every error of the pass time: at 90 % of capacity an error of 1 % moves the mean
wait by about 10 %.

One round per seed:

    1  single calls to the idle server give passes of known sizes, and the time of a call outside
       queue and model; before the first and after each run of 2
    2  for each load, calls arrive at the server at the seed's times with the seed's texts
    3  the same calls at the same times go through the simulation: once with the pass time fitted to
       the passes of 1 around the run, and once with that pass time scaled to the server's busy
       seconds in the run, which removes the drift of a shared machine's speed

Capacity is the rate at which the simulation answers groups that wait together.
"""

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import simpy

from kwise.benchmarks.capacity.cluster import quantile
from kwise.benchmarks.capacity.load import Call, Response, arrival_times
from kwise.benchmarks.capacity.machines import group_size
from kwise.benchmarks.capacity.options import QueueBenchConfig
from kwise.benchmarks.capacity.pass_time import (
    MeasuredPass,
    PassSize,
    PassTime,
    fit_pass_time,
    relative_errors,
)
from kwise.benchmarks.capacity.replica import Replica, ReplicaConfig
from kwise.benchmarks.options import Cell
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.serving.server_process import running_server
from kwise.benchmarks.workload import read_trie_artifact
from kwise.client import AsyncRewardClient, RewardClient
from kwise.engine.artifact import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.precision import Precision
from kwise.engine.trie import KEY_BYTES

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_TIMEOUT_S = 3600.0
# Prompts of calibration are never asked again, because the prompt cache would have them.
_CALIBRATION_SEEDS = itertools.count(500_000_000)


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


def run(config: QueueBenchConfig) -> None:
    """Print measured and simulated quantiles side by side, and write them to `config.json`."""
    artifact, cell = read_trie_artifact(config.artifact), config.parsed_cell()
    vocab_size = artifact.manifest.vocab_size
    if config.measured:
        content = json.loads(Path(config.measured).read_text(encoding="utf-8"))
        rounds = [Round.read(item) for item in content["rounds"]]
    else:
        rounds = _measure(artifact, config, cell)
    results = compare(rounds, cell, vocab_size)
    if config.json:
        measured = [asdict(measured_round) for measured_round in rounds]
        write_results(config.json, "queue", config, {**results, "rounds": measured})


def compare(rounds: Sequence[Round], cell: Cell, vocab_size: int) -> dict[str, Any]:
    """Simulate what was measured, print both, and return the figures of each run and load."""
    compared: list[Compared] = []
    for measured in rounds:
        for run in measured.runs:
            replica = ReplicaConfig(
                pass_time=fit_pass_time(run.timed),
                overhead_s=run.overhead_s,
                prompt_cache_tokens=measured.prompt_cache_tokens,
            )
            calls = _calls(cell, vocab_size, measured.seed, run)
            fitted = simulate_one(calls, replica)
            factor = run.busy_s / fitted.busy_s
            scaled = simulate_one(
                calls, replace(replica, pass_time=replica.pass_time.scaled(factor))
            )
            compared.append(
                Compared(
                    seed=measured.seed,
                    measured=run,
                    pass_time=replica.pass_time,
                    fitted=fitted,
                    scaled=scaled,
                    factor=factor,
                )
            )
    for item in compared:
        _print_run(item)
    return {"runs": [run.figures() for run in compared], "loads": _by_load(compared)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measured run and its simulations; `factor` scales the pass time of the second."""

    seed: int
    measured: Run
    pass_time: PassTime
    fitted: "Simulated"
    scaled: "Simulated"
    factor: float

    def figures(self) -> dict[str, Any]:
        """Return the quantiles and counters of all three."""
        ways: dict[str, Run | Simulated] = {
            "measured": self.measured,
            "fitted": self.fitted,
            "scaled": self.scaled,
        }
        return {
            "load": self.measured.load,
            "seed": self.seed,
            "factor": self.factor,
            "pass_time": asdict(self.pass_time),
            "pass_error": statistics.median(
                map(abs, relative_errors(self.pass_time, self.measured.timed))
            ),
            **{
                name: {**quantiles(way.seconds), "passes": way.passes, "rows": way.rows}
                for name, way in ways.items()
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """The latency of each call, in order of arrival, and the replica's counters."""

    seconds: list[float]
    busy_s: float
    passes: int
    rows: int


def simulate_one(calls: Sequence[Call], config: ReplicaConfig) -> Simulated:
    """Send the calls to one replica at their times, and return the latency of each."""
    env = simpy.Environment()
    replica = Replica(env, config)
    seconds = [0.0] * len(calls)

    def send(number: int, call: Call) -> Any:
        yield env.timeout(call.arrives_s + config.overhead_s)
        yield replica.submit(call)
        seconds[number] = env.now - call.arrives_s

    sent = [env.process(send(number, call)) for number, call in enumerate(calls)]
    env.run(env.all_of(sent))
    counters = replica.counters
    return Simulated(
        seconds=seconds, busy_s=counters.busy_s, passes=counters.passes, rows=counters.rows
    )


def capacity_per_s(cell: Cell, vocab_size: int, config: ReplicaConfig, groups: int = 40) -> float:
    """Return the groups per second that the simulation answers if all wait together."""
    calls = [
        Call(arrives_s=0.0, prompt=number, responses=_responses(cell, vocab_size, number))
        for number in range(groups)
    ]
    return groups / simulate_one(calls, config).busy_s


def _responses(cell: Cell, vocab_size: int, seed: int) -> list[Response]:
    return [Response(sequence) for sequence in cell.group(vocab_size, seed)]


def _calls(cell: Cell, vocab_size: int, seed: int, run: Run) -> list[Call]:
    times = arrival_times(run.rate_per_s, len(run.seconds), seed)
    return [
        Call(
            arrives_s=time_s,
            prompt=number,
            responses=_responses(cell, vocab_size, _text_seed(seed, number)),
        )
        for number, time_s in enumerate(times)
    ]


def _text_seed(seed: int, number: int) -> int:
    return 1_000_000 * (seed + 1) + number


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, p90, p99 and mean."""
    ascending = sorted(seconds)
    values = {name: quantile(ascending, share) for name, share in _QUANTILES.items()}
    return {**values, "mean": statistics.fmean(ascending)}


# Measuring


def _measure(artifact: Artifact, config: QueueBenchConfig, cell: Cell) -> list[Round]:
    vocab_size = artifact.manifest.vocab_size
    cache_tokens = EngineConfig().prompt_cache_bytes // _state_bytes(artifact)
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
                if config.json:  # a run takes minutes, so none is lost
                    content = {"rounds": [asdict(item) for item in rounds]}
                    write_results(config.json, "queue", config, content)
    return rounds


def _state_bytes(artifact: Artifact) -> int:
    """Return the bytes of a token in the prompt cache: its key, and keys and values in fp32."""
    path = artifact.graph_path(Precision.FP32)
    inputs = onnx.load(path, load_external_data=False).graph.input
    widths: list[int] = [
        value.type.tensor_type.shape.dim[1].dim_value
        for value in inputs
        if value.name.startswith("past.")
    ]
    return KEY_BYTES + 4 * sum(widths)


def _time_passes(
    cell: Cell, vocab_size: int, address: str, repeats: int
) -> tuple[list[MeasuredPass], float]:
    """Return passes of different sizes, and the seconds of a call outside queue and model.

    A call to an idle server is one pass, if it does not exceed a batch, and the reply says how long
    the pass took.
    """
    P, R, K = cell.P, cell.R, cell.K
    short, some = Cell(P=max(P // 4, 1), R=max(R // 2, 1), K=K), max(K // 3, 1)
    cells = [replace(cell, K=k) for k in sorted({1, some, max(2 * K // 3, 1), K, K + some})]
    cells += [short, replace(short, K=1)]
    cells += [Cell(P=4 * P, R=R, K=k) for k in sorted({1, some, max(2 * K // 3, 1)})]
    rng = random.Random(0)
    passes, overheads = [], []
    with RewardClient(address) as client:
        for _ in range(repeats):
            for size in rng.sample(cells, len(cells)):
                prompt, responses = size.request(vocab_size, next(_CALIBRATION_SEEDS))
                started = time.perf_counter()
                scored = client.score(prompt, responses, timeout_s=_TIMEOUT_S)
                elapsed_s = time.perf_counter() - started
                model_s = scored.timing.model_ms / 1000
                rows, pairs = group_size(size)
                passes.append(MeasuredPass(size=PassSize(rows=rows, pairs=pairs), seconds=model_s))
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
    """Send the seed's groups at the seed's times, without waiting for replies.

    Returns the measured fields of `Run`.
    """
    requests = [cell.request(vocab_size, _text_seed(seed, number)) for number in range(groups)]
    times = arrival_times(rate_per_s, groups, seed)
    late: list[float] = []
    async with AsyncRewardClient(address) as client:
        await client.wait_until_ready()
        before = (await client.get_model()).counters
        start_s = time.perf_counter()

        async def call(number: int) -> float:
            await asyncio.sleep(start_s + times[number] - time.perf_counter())
            sent_s = time.perf_counter()
            late.append(sent_s - start_s - times[number])
            await client.score(*requests[number], timeout_s=_TIMEOUT_S)
            return time.perf_counter() - sent_s

        seconds = await asyncio.gather(*map(call, range(groups)))
        after = (await client.get_model()).counters
    return {
        "seconds": seconds,
        "busy_s": after.busy_s - before.busy_s,
        "passes": after.model_passes - before.model_passes,
        "rows": after.rows - before.rows,
        "max_late_s": max(late),
    }


# Reporting


def _print_run(compared: Compared) -> None:
    figures, pass_time = compared.figures(), compared.pass_time
    print(
        f"seed {compared.seed}, load {compared.measured.load:.0%}: a pass takes "
        f"{1e3 * pass_time.fixed_s:.1f} ms, {1e3 * pass_time.per_row_s:.4f} ms a row and "
        f"{1e9 * pass_time.per_pair_s:.0f} ns a pair, with an error of "
        f"{figures['pass_error']:.1%} (median);\n    measured, fitted, scaled by "
        f"{compared.factor:.3f}: "
        + "; ".join(
            f"{name} "
            + " ".join(f"{figures[way][name]:.2f}" for way in ("measured", "fitted", "scaled"))
            for name in _QUANTILES
        )
        + " s"
    )


def _by_load(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Return, for each load, the quantiles of all its runs together, and print them."""
    rows = []
    print("load   quantile   measured   simulated: fitted       scaled to each run's speed")
    for load in sorted({run.measured.load for run in compared}):
        runs = [run for run in compared if run.measured.load == load]
        pooled = {
            "measured": [s for run in runs for s in run.measured.seconds],
            "fitted": [s for run in runs for s in run.fitted.seconds],
            "scaled": [s for run in runs for s in run.scaled.seconds],
        }
        row = {name: quantiles(seconds) for name, seconds in pooled.items()}
        rows.append({"load": load, "seeds": len(runs), **row})
        for name in _QUANTILES:
            real, fitted, scaled = (row[way][name] for way in pooled)
            print(
                f"{load:4.0%}   {name:8s} {real:8.2f} s   {fitted:8.2f} s "
                f"({fitted / real - 1:+6.1%})   {scaled:8.2f} s ({scaled / real - 1:+6.1%})"
            )
    return rows
