"""The cost of serving in addition to the model, and the waiting times of requests.

How much does a server add to the time of the model, and how long does a request wait? Physics: the
model pass limits uncached work, and gRPC with the event loop limits cached work. Five figures, each
a ratio within one run or a rate, with client and server on one machine:

    saturation   groups per second over gRPC, relative to the same groups run directly by a session
                 in this process, in turns
    queueing     p99 relative to p50 of calls that arrive at random (Poisson) at 80 % of the
                 capacity measured at saturation
    from cache   cached groups of K = 9 per second, from processes that fill a stream each
    latency      a cached call relative to an empty one (gRPC's health check), in turns
    protocols    a cached group of K = 9 over HTTP relative to gRPC (`protocols.py`)
"""

import asyncio
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from kwise.benchmarks.options import Cell, LoadBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.serving.protocols import compare_protocols
from kwise.benchmarks.serving.server_process import running_server
from kwise.benchmarks.workload import run_queued
from kwise.client import AsyncRewardClient, RewardClient
from kwise.client.messages import to_group
from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.model.layouts.table import LAYOUTS
from kwise.engine.model.session import GraphSession
from kwise.errors import KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import Priority

# Real text rather than token ids, because tokenising is part of a call.
_CACHED_GROUP = (
    "Which of these is a prime number, and why is it one? Answer in a sentence.",
    [
        f"Number {number} is a prime number, for nothing but 1 and itself divides it."
        for number in (2, 3, 5, 7, 11, 13, 17, 19, 23)
    ],
)
_NUM_WARM_UPS = 50
_QUEUEING_LOAD = 0.8


def run(config: LoadBenchConfig) -> None:
    """Print the figures and write them to `config.json`."""
    artifact, cell = read_artifact(Path(config.artifact)), config.parsed_cell()
    with running_server(artifact, "--cache-bytes", "0") as server:
        saturation = _saturation(artifact, config, cell, server.address)
        print(
            "saturation: {served_per_s:.3f} groups/s over gRPC, {direct_per_s:.3f} direct, "
            "ratio {ratio:.3f}\n"
            "            the model was idle with work waiting {idle_with_work:.2%} of the "
            "time".format(**saturation)
        )
        queueing = None
        if config.poisson_calls:
            rate_per_s = _QUEUEING_LOAD * saturation["served_per_s"]
            queueing = _queueing(artifact, config, cell, server.address, rate_per_s)
            print(
                "queueing:   p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms, ratio {ratio:.2f} at "
                "{load:.0%} of capacity".format(**queueing)
            )
    with running_server(artifact, "--http-port", "0") as server:
        cached = [_from_cache(config.clients, server.address) for _ in range(config.repeats)]
        print(
            f"from cache: {statistics.median(cached):,.0f} groups of 9 per second, from "
            f"{config.clients} process(es)"
        )
        latency = asyncio.run(_latency(server.address, config.calls))
        print(
            "latency:    cached call p50 {cached_ms:.3f} ms, empty call p50 {empty_ms:.3f} ms, "
            "ratio {ratio:.2f}".format(**latency)
        )
        protocols = compare_protocols(
            server,
            _CACHED_GROUP,
            calls=config.calls,
            repeats=config.repeats,
        )
        print(
            f"protocols:  a cached group of 9 takes {protocols['http']['us']:.0f} us over HTTP and "
            f"{protocols['grpc']['us']:.0f} us over gRPC, ratio {protocols['ratio']:.2f};\n"
            f"            the server's CPU time is {protocols['http']['cpu_us']:.0f} us and "
            f"{protocols['grpc']['cpu_us']:.0f} us ({protocols['stream']['cpu_us']:.0f} us on a "
            f"stream), ratio {protocols['cpu_ratio']:.2f}"
        )
    if config.json:
        results = {
            "artifact": artifact.manifest.name,
            "saturation": saturation,
            "queueing": queueing,
            "from_cache_per_s": cached,
            "latency": latency,
            "protocols": protocols,
        }
        write_results(config.json, "load", config, results)


def _saturation(
    artifact: Artifact, config: LoadBenchConfig, cell: Cell, address: str
) -> dict[str, Any]:
    """Return the rates over gRPC and directly, medians of rounds in turns."""
    engine = EngineConfig()
    session = GraphSession(
        artifact,
        threads=engine.runtime_threads,
        prompt_cache_bytes=engine.effective_prompt_cache_bytes,
    )
    max_batch_tokens = engine.effective_max_batch_tokens
    vocab_size, new_batch = (
        artifact.manifest.vocab_size,
        LAYOUTS[artifact.manifest.layout].new_batch,
    )
    served, direct, idle = [], [], []
    with RewardClient(address) as client:
        for repeat in range(-1, config.repeats):  # -1 is the warm-up
            seed = 1000 * (repeat + 2)
            sequences = [cell.group(vocab_size, seed + number) for number in range(config.groups)]
            direct_s, _ = run_queued(session, sequences, max_batch_tokens, new_batch)
            groups = [cell.request(vocab_size, seed + number) for number in range(config.groups)]
            before = client.get_model().counters
            started = time.perf_counter()
            for result in client.score_many(groups):
                if isinstance(result, KwiseError):
                    raise result
            served_s = time.perf_counter() - started
            after = client.get_model().counters
            if repeat >= 0:
                served.append(served_s)
                direct.append(direct_s)
                idle.append((after.idle_with_work_s - before.idle_with_work_s) / served_s)
    return {
        "served_per_s": config.groups / statistics.median(served),
        "direct_per_s": config.groups / statistics.median(direct),
        "ratio": statistics.median(d / s for d, s in zip(direct, served, strict=True)),
        "ratios": [d / s for d, s in zip(direct, served, strict=True)],
        "idle_with_work": statistics.median(idle),
    }


def _queueing(
    artifact: Artifact, config: LoadBenchConfig, cell: Cell, address: str, rate_per_s: float
) -> dict[str, Any]:
    """Return the percentiles of calls at exponential intervals, which do not wait for replies."""
    rng = random.Random(0)
    groups = [
        cell.request(artifact.manifest.vocab_size, 50_000 + number)
        for number in range(config.poisson_calls)
    ]

    async def load() -> list[float]:
        async with AsyncRewardClient(address) as client:
            await client.wait_until_ready()

            async def call(prompt: list[int], responses: list[list[int]]) -> float:
                started = time.perf_counter()
                await client.score(prompt, responses)
                return time.perf_counter() - started

            calls = []
            for group in groups:
                calls.append(asyncio.create_task(call(*group)))
                await asyncio.sleep(rng.expovariate(rate_per_s))
            return await asyncio.gather(*calls)

    seconds = sorted(asyncio.run(load()))
    p50_ms, p99_ms = (
        1000 * seconds[min(int(share * len(seconds)), len(seconds) - 1)] for share in (0.5, 0.99)
    )
    return {
        "load": _QUEUEING_LOAD,
        "rate_per_s": rate_per_s,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "ratio": p99_ms / p50_ms,
    }


def _from_cache(clients: int, address: str) -> float:
    """Return the groups per second of `clients` processes with one stream each."""
    with RewardClient(address) as client:
        client.score(*_CACHED_GROUP)
    command = [sys.executable, "-m", "kwise.benchmarks.serving.load", address]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("a client failed")
    return sum(map(float, printed))


async def _stream_cached(address: str, seconds: float = 5.0, window: int = 64) -> float:
    """Return the cached groups per second over one stream with up to `window` of them in flight."""
    group = to_group("", *_CACHED_GROUP, Priority.INTERACTIVE)
    async with grpc.aio.insecure_channel(address) as channel:
        free_slots, num_answered = asyncio.Semaphore(window), 0
        ends_at = time.perf_counter() + seconds

        async def requests() -> Any:
            number = 0
            while time.perf_counter() < ends_at:
                await free_slots.acquire()
                yield pb.ScoreStreamRequest(id=str(number), group=group)
                number += 1

        started = time.perf_counter()
        async for reply in reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(requests()):
            if (
                not all(reward.cached for reward in reply.scored.rewards)
                or len(reply.scored.rewards) != 9
            ):
                raise RuntimeError(f"not from the cache: {reply}")
            num_answered += 1
            free_slots.release()
        return num_answered / (time.perf_counter() - started)


async def _latency(address: str, calls: int) -> dict[str, float]:
    """Return the median times of cached and empty calls, one after the other, in turns."""
    request = pb.ScoreRequest(group=to_group("", *_CACHED_GROUP, Priority.INTERACTIVE))
    async with grpc.aio.insecure_channel(address) as channel:
        score: Any = reward_pb2_grpc.RewardServiceStub(channel).Score
        check = channel.unary_unary(
            f"/{health.SERVICE_NAME}/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        seconds: dict[str, list[float]] = {"cached": [], "empty": []}
        for number in range(calls + _NUM_WARM_UPS):
            for name, call, message in (
                ("cached", score, request),
                ("empty", check, health_pb2.HealthCheckRequest()),
            ):
                started = time.perf_counter()
                await call(message)
                if number >= _NUM_WARM_UPS:
                    seconds[name].append(time.perf_counter() - started)
    cached_ms, empty_ms = (1000 * statistics.median(seconds[name]) for name in ("cached", "empty"))
    return {"cached_ms": cached_ms, "empty_ms": empty_ms, "ratio": cached_ms / empty_ms}


if __name__ == "__main__":
    print(asyncio.run(_stream_cached(sys.argv[1])))
