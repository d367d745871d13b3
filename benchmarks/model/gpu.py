"""The speed of a GPU, and the difference of its rewards from the fp32 reference.

Physics: as on a CPU (see graph.py), a group is P + K·R rows instead of K·(P + R), 1.8 times fewer
at 64/64/9 and 4.8 times fewer at 1024/128/9. But starting the kernels of a small group, thousands
per pass, takes a GPU longer than running them. So for small groups the number of kernels decides,
and rows decide only in large batches. Three tables of one run, each figure a median:

    parity       differences of the device's rewards from fp32 on this machine's CPU and from the
                 golden rewards, maximum and mean
    latency      one group at a time, each with a new prompt; with inputs padded to few shapes
                 (shape_buckets.py), as the engine does on a GPU, and without; baseline:
                 transformers on the same device in the same precision, a padded batch of K
    throughput   groups that wait together, scored by the engine with one session per device;
                 baseline: transformers, one group after the other on one device, times the number
                 of devices

Ratios are medians of ratios within a repeat. `--device cpu` runs the same code without a GPU.
"""

import asyncio
import copy
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwise.benchmarks.model.baselines import TransformersModel
from kwise.benchmarks.options import Cell, GpuBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.workload import read_trie_artifact, run_queued
from kwise.engine.artifact import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import golden_sequences, new_encoder
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import cpu_has_bf16
from kwise.engine.model.runtime.protocol import Graph
from kwise.engine.model.session import GraphSession
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.precision import Precision
from kwise.engine.scorer import Scorer
from kwise.engine.select import select_backend
from kwise.errors import ConfigError
from kwise.options import MAX_COUNT
from kwise.types import Group, Reward

# The first pass of a shape plans its memory, the second uses the plan, and libraries choose their
# kernels.
_NUM_WARM_UPS = 3
Rewards = NDArray[np.float32]


def run(config: GpuBenchConfig) -> None:
    """Print the tables and write the figures to `config.json`.

    Raises:
        OSError: the GPU or a library to use it is missing.
    """
    artifact = read_trie_artifact(config.artifact)
    results: dict[str, Any] = {"artifact": artifact.manifest.name, "precisions": {}}
    kind = parse_devices(config.device)[0].kind
    for precision in artifact.manifest.available_precisions:
        try:
            select_backend((precision,), Runtime.ONNXRUNTIME, kind, [precision], cpu_has_bf16)
        except ConfigError as error:
            print(f"skipped: {error}")
            continue
        # The graph for CUDA on a CPU too, because it is what this benchmark is about.
        contract = artifact.manifest.cuda_graphs.get(precision)
        measured = artifact.with_graph(precision, contract) if contract else artifact
        results["precisions"][precision.value] = _measure(config, measured, precision)
    if config.json:
        write_results(config.json, "gpu", config, results)


def _measure(config: GpuBenchConfig, artifact: Artifact, precision: Precision) -> dict[str, Any]:
    device, threads = parse_devices(config.device)[0], EngineConfig().runtime_threads
    try:
        session = GraphSession(
            artifact,
            runtime=Runtime.ONNXRUNTIME,
            precision=precision,
            device=device.name,
            threads=threads,
        )
    except ConfigError as error:
        if device.kind is Kind.CPU:
            raise
        raise OSError(f"no GPU to measure: {error}") from error
    baseline = TransformersModel.load(config.checkpoint, device.name, precision)
    print(f"{precision.value} on {config.device}: {session.runtime}")
    results: dict[str, Any] = {
        "runtime": session.runtime,
        "baseline": baseline.name if baseline else None,
    }
    results["parity"] = _parity(config, artifact, session)
    for line in map(parity_line, results["parity"], results["parity"].values()):
        print(line)
    print("     P     R     K      ms   unpadded   transformers   ratio   unpadded ratio")
    results["latency"] = []
    for cell in config.parsed_cells():
        results["latency"].append(
            row := _latency(config, artifact.manifest.vocab_size, session, baseline, cell)
        )
        print(latency_line(row), flush=True)
    del session  # frees its memory for the sessions of the engine
    results["throughput"] = []
    for cell in config.parsed_cells():
        results["throughput"].append(
            row := _throughput(config, artifact, precision, baseline, cell)
        )
        print(throughput_line(row), flush=True)
    return results


def _parity(
    config: GpuBenchConfig, artifact: Artifact, session: GraphSession
) -> dict[str, dict[str, float]]:
    """Return the differences by reference: golden rewards, and fp32 on the CPU if available."""
    sequences = golden_sequences(artifact, new_encoder(artifact, EngineConfig()))
    golden = [session.run([sequence]).rewards for sequence in sequences]
    expected = np.array([entry.reward for entry in artifact.golden], np.float32)
    parity = {"the golden rewards": parity_of(np.concatenate(golden), expected)}
    if Precision.FP32 in artifact.manifest.available_precisions:
        reference = GraphSession(artifact, threads=EngineConfig().runtime_threads)
        groups = [cell.group(artifact.manifest.vocab_size, 0) for cell in config.parsed_cells()]
        actual, expected = (
            np.concatenate([s.run(group).rewards for group in groups]) for s in (session, reference)
        )
        parity["fp32 on the CPU"] = parity_of(actual, expected)
    return parity


def parity_line(reference: str, figures: dict[str, float]) -> str:
    """Return the line that is printed for one reference."""
    return (
        f"difference from {reference}: max {figures['max_difference']:.1e}, "
        f"mean {figures['mean_difference']:.1e}; in standard deviations "
        f"{figures['max_in_std']:.1e} and {figures['mean_in_std']:.1e} "
        f"({figures['rewards']} rewards)"
    )


def parity_of(actual: Rewards, expected: Rewards) -> dict[str, float]:
    """Return differences, raw and in standard deviations of the expected rewards.

    NaN is passed on, because a reward that is NaN is a difference.
    """
    differences = np.abs(actual.astype(np.float64) - expected)
    figures = {"max": float(differences.max()), "mean": float(differences.mean())}
    std = float(expected.std()) or 1.0
    return (
        {"rewards": len(expected)}
        | {f"{name}_difference": value for name, value in figures.items()}
        | {f"{name}_in_std": value / std for name, value in figures.items()}
    )


def _latency(
    config: GpuBenchConfig,
    vocab_size: int,
    session: GraphSession,
    baseline: TransformersModel | None,
    cell: Cell,
) -> dict[str, Any]:
    """Measure one group at a time, in turns with the baseline."""
    padded, unpadded = _padded_and_unpadded(session)
    seconds: dict[str, list[float]] = {"padded": [], "unpadded": [], "baseline": []}
    for repeat in range(_NUM_WARM_UPS + config.repeats):
        group = cell.group(vocab_size, repeat)
        seconds["padded"].append(run_queued(padded, [group], config.max_batch_tokens)[0])
        seconds["unpadded"].append(run_queued(unpadded, [group], config.max_batch_tokens)[0])
        if baseline is not None:
            seconds["baseline"].append(baseline.run(group)[0])
    return {
        **asdict(cell),
        **latency_of(**{name: runs[_NUM_WARM_UPS:] for name, runs in seconds.items()}),
    }


def latency_of(
    padded: Sequence[float], unpadded: Sequence[float], baseline: Sequence[float]
) -> dict[str, Any]:
    """Return medians in seconds, and medians of ratios to `padded` within a repeat.

    The figures of the baseline are None if it did not run.
    """
    return {
        "seconds": statistics.median(padded),
        "unpadded_seconds": statistics.median(unpadded),
        "unpadded_ratio": _ratio(unpadded, padded),
        "baseline_seconds": statistics.median(baseline) if baseline else None,
        "baseline_ratio": _ratio(baseline, padded) if baseline else None,
        "runs": len(padded),
    }


def latency_line(row: dict[str, Any]) -> str:
    """Return the line of the table."""
    baseline = (
        f"{row['baseline_seconds'] * 1000:>11.2f} ms {row['baseline_ratio']:>7.2f}"
        if row["baseline_seconds"]
        else f"{'-':>14} {'-':>7}"
    )
    return (
        f"{row['P']:>6} {row['R']:>5} {row['K']:>5} {row['seconds'] * 1000:>7.2f} "
        f"{row['unpadded_seconds'] * 1000:>7.2f} ms {baseline} {row['unpadded_ratio']:>16.2f}"
    )


def _padded_and_unpadded(session: GraphSession) -> tuple[GraphSession, GraphSession]:
    """Return sessions (with inputs padded to few shapes, without), both on the same graph.

    They have no prompt cache, so that repeats do not help each other.
    """
    graph = session._graph.graph if isinstance(session._graph, BucketedGraph) else session._graph
    return _with_graph(session, BucketedGraph(graph)), _with_graph(session, graph)


def _with_graph(session: GraphSession, graph: Graph) -> GraphSession:
    other = copy.copy(session)
    other._graph, other.prompt_cache = graph, PromptCache(0)
    return other


def _throughput(
    config: GpuBenchConfig,
    artifact: Artifact,
    precision: Precision,
    baseline: TransformersModel | None,
    cell: Cell,
) -> dict[str, Any]:
    """Measure all groups at once, in turns with the baseline."""
    num_devices = len(parse_devices(config.device))
    engine = EngineConfig(
        device=config.device,
        precision=precision.value,
        max_batch_tokens=config.max_batch_tokens,
        cache_bytes=0,
        prompt_cache_bytes=0,
        max_queue_tokens=MAX_COUNT,
    )
    vocab_size = artifact.manifest.vocab_size
    seconds, baseline_seconds = [], []
    with asyncio.Runner() as runner:
        scorer = Scorer.load(artifact.path, engine)
        runner.run(_start(scorer))
        for repeat in range(_NUM_WARM_UPS + max(config.repeats // 3, 1)):
            seeds = range(repeat * config.groups, (repeat + 1) * config.groups)
            groups = [_to_group(*cell.request(vocab_size, seed)) for seed in seeds]
            started = perf_counter()
            runner.run(_score(scorer, groups))
            seconds.append(perf_counter() - started)
            if baseline is not None:
                baseline_seconds.append(
                    sum(baseline.run(cell.group(vocab_size, seed))[0] for seed in seeds)
                    / num_devices
                )
        runner.run(scorer.close())
    return {
        **asdict(cell),
        "groups": config.groups,
        "devices": num_devices,
        **throughput_of(
            cell, config.groups, seconds[_NUM_WARM_UPS:], baseline_seconds[_NUM_WARM_UPS:]
        ),
    }


def throughput_of(
    cell: Cell, num_groups: int, seconds: Sequence[float], baseline_seconds: Sequence[float]
) -> dict[str, Any]:
    """Return medians. Tokens are counted as clients send them: K·(P + R) per group."""
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "tokens_per_s": num_groups * cell.K * (cell.P + cell.R) / median,
        "groups_per_s": num_groups / median,
        "baseline_seconds": statistics.median(baseline_seconds) if baseline_seconds else None,
        "baseline_ratio": _ratio(baseline_seconds, seconds) if baseline_seconds else None,
    }


def throughput_line(row: dict[str, Any]) -> str:
    """Return the line that is printed for a cell."""
    ratio = f", {row['baseline_ratio']:.2f} times transformers" if row["baseline_ratio"] else ""
    return (
        f"{row['P']}/{row['R']}/{row['K']}: {row['groups_per_s']:,.1f} groups/s, "
        f"{row['tokens_per_s']:,.0f} tokens/s with {row['groups']} groups queued{ratio}"
    )


def _to_group(prompt: list[int], responses: list[list[int]]) -> Group:
    return Group(prompt=tuple(prompt), responses=tuple(map(tuple, responses)))


async def _start(scorer: Scorer) -> None:
    scorer.start()


async def _score(scorer: Scorer, groups: Sequence[Group]) -> None:
    for scored in await asyncio.gather(*map(scorer.score, groups)):
        assert all(isinstance(reward, Reward) for reward in scored.rewards), scored.rewards


def _ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))
