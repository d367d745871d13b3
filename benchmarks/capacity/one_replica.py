"""One replica alone: the same calls at the same times as a measured server gets them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from kwise.benchmarks.capacity.cluster import quantile
from kwise.benchmarks.capacity.load import Call, Response, arrival_times
from kwise.benchmarks.capacity.replica import Replica, ReplicaConfig
from kwise.benchmarks.options import Cell

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


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


def seeded_calls(
    cell: Cell, vocab_size: int, *, seed: int, count: int, rate_per_s: float
) -> list[Call]:
    """Return the seed's groups at the seed's times, with the texts of `text_seed`."""
    times = arrival_times(rate_per_s, count, seed)
    return [
        Call(
            arrives_s=time_s,
            prompt=number,
            responses=_responses(cell, vocab_size, text_seed(seed, number)),
        )
        for number, time_s in enumerate(times)
    ]


def text_seed(seed: int, number: int) -> int:
    """Return the seed of the texts of one call; `Cell.request` and `Cell.group` take it."""
    return 1_000_000 * (seed + 1) + number


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, p90, p99 and mean."""
    ascending = sorted(seconds)
    values = {name: quantile(ascending, share) for name, share in QUANTILES.items()}
    return {**values, "mean": statistics.fmean(ascending)}
