"""How near is a GPU to the fp32 reference, how soon does it answer one group, and how many tokens a second does it score?

Physics: as on a CPU (see graph.py) a group is P + K·R rows instead of K·(P+R), 1.8 times fewer at 64/64/9 and 4.8 times at
1024/128/9. But a GPU is so fast that starting the kernels of a small group, some thousands a pass, takes longer than they run:
there the ratio is that of kernels, and rows decide only in large batches. Three tables of one run, each figure a median:

    parity       largest and mean difference of the device's rewards from fp32 on this machine's CPU, and from the golden rewards
    latency      one group at a time, each with a new prompt; with inputs padded to few shapes (buckets.py) as the engine does on a
                 GPU, and as they are; against transformers on the same device and in the same precision, a padded batch of K
    throughput   groups that wait together, through the engine's own queue and one session a device; against transformers, one
                 group after the other on one device, times the number of devices

Ratios are medians of ratios within a repeat. `--device cpu` runs the same code, to try it where there is no GPU.
"""

import asyncio
import copy
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwise.benchmarks import machine
from kwise.benchmarks.peers import Transformers
from kwise.benchmarks.workload import Cell, parse_cells, read_trie, run_queued
from kwise.engine.artifact import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import golden_sequences, new_encoder
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.precision import Precision
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import cpu_has_bf16
from kwise.engine.model.runtime.protocol import Graph
from kwise.engine.model.select import select_backend
from kwise.engine.model.session import GraphSession
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.scorer import Scorer
from kwise.errors import ConfigError
from kwise.options import check_bounds, option
from kwise.types import Group, Reward

# Before anything is timed: the first pass of a shape plans its memory, the second uses the plan, and libraries choose kernels.
_WARM_UPS = 3
Rewards = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBenchConfig:
    """What to measure. Raises ConfigError, naming the option and its bound."""

    artifact: str = option(help="an artifact of the trie layout")
    checkpoint: str = option("", "its checkpoint, for transformers beside it")
    device: str = option(
        "cuda:0", "as in `kwise serve`; latency is measured on the first of several"
    )
    cells: str = option(
        "64/64/9,256/128/9,1024/128/9",
        "groups P/R/K: tokens of the prompt, tokens of a response, responses",
    )
    repeats: int = option(10, "runs of each cell, after three to warm up", minimum=1)
    groups: int = option(64, "groups that wait together", minimum=1)
    max_batch_tokens: int = option(8192, "as in `kwise serve`, for throughput", minimum=16)
    json: str = option("", "file for all figures, with the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        parse_devices(self.device)
        self.parsed_cells()

    def parsed_cells(self) -> list[Cell]:
        return parse_cells(self.cells)


def run(config: GpuBenchConfig) -> None:
    """Print the tables, and write the figures where --json says.

    Raises:
        OSError: there is no such GPU, or nothing to run it with.
    """
    artifact = read_trie(config.artifact)
    results: dict[str, Any] = {
        "artifact": artifact.manifest.name,
        "options": machine.plain(asdict(config)),
        "precisions": {},
    }
    kind = parse_devices(config.device)[0].kind
    for precision in artifact.manifest.available_precisions:
        try:
            _, runtime = select_backend((precision,), Runtime.AUTO, kind, [precision], cpu_has_bf16)
        except ConfigError as error:
            print(f"left out: {error}")
            continue
        results["precisions"][precision.value] = _measure(config, artifact, precision, runtime)
    if config.json:
        machine.write(Path(config.json), results)


def _measure(
    config: GpuBenchConfig, artifact: Artifact, precision: Precision, runtime: Runtime
) -> dict[str, Any]:
    device, threads = parse_devices(config.device)[0], EngineConfig().runtime_threads
    try:
        session = GraphSession(
            artifact, runtime=runtime, precision=precision, device=device.name, threads=threads
        )
    except ConfigError as error:
        if device.kind is Kind.CPU:
            raise
        raise OSError(f"no GPU to measure: {error}") from error
    peer = Transformers.load(config.checkpoint, device.name, precision)
    print(f"{precision.value} on {config.device}: {session.runtime}")
    results: dict[str, Any] = {"runtime": session.runtime, "peer": peer.name if peer else None}
    results["parity"] = _parity(config, artifact, session)
    for line in map(parity_line, results["parity"], results["parity"].values()):
        print(line)
    print("     P     R     K      ms   as it is   transformers   ratio    without padding")
    results["latency"] = []
    for cell in config.parsed_cells():
        results["latency"].append(
            row := _latency(config, artifact.manifest.vocab_size, session, peer, cell)
        )
        print(latency_line(row), flush=True)
    del session  # its memory, for the engine's own
    results["throughput"] = []
    for cell in config.parsed_cells():
        results["throughput"].append(row := _throughput(config, artifact, precision, peer, cell))
        print(throughput_line(row), flush=True)
    return results


def _parity(
    config: GpuBenchConfig, artifact: Artifact, session: GraphSession
) -> dict[str, dict[str, float]]:
    """By what the rewards are compared with: the golden ones, and fp32 on the CPU where the artifact has it."""
    sequences = golden_sequences(artifact, new_encoder(artifact, EngineConfig()))
    golden = [session.run([sequence]).rewards for sequence in sequences]
    expected = np.array([entry.reward for entry in artifact.golden], np.float32)
    found = {"the golden rewards": parity_of(np.concatenate(golden), expected)}
    if Precision.FP32 in artifact.manifest.available_precisions:
        reference = GraphSession(artifact, threads=EngineConfig().runtime_threads)
        groups = [cell.group(artifact.manifest.vocab_size, 0) for cell in config.parsed_cells()]
        actual, expected = (
            np.concatenate([s.run(group).rewards for group in groups]) for s in (session, reference)
        )
        found["fp32 on the CPU"] = parity_of(actual, expected)
    return found


def parity_line(reference: str, figures: dict[str, float]) -> str:
    return (
        f"largest difference from {reference} {figures['max_difference']:.1e}, mean {figures['mean_difference']:.1e}; in standard "
        f"deviations {figures['max_in_std']:.1e} and {figures['mean_in_std']:.1e} ({figures['rewards']} rewards)"
    )


def parity_of(actual: Rewards, expected: Rewards) -> dict[str, float]:
    """Differences as they are and in standard deviations of the expected rewards; NaN is passed on, for it is a difference."""
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
    peer: Transformers | None,
    cell: Cell,
) -> dict[str, Any]:
    """One group at a time, in turns."""
    padded, unpadded = _both_ways(session)
    seconds: dict[str, list[float]] = {"padded": [], "unpadded": [], "peer": []}
    for repeat in range(_WARM_UPS + config.repeats):
        group = cell.group(vocab_size, repeat)
        seconds["padded"].append(run_queued(padded, "trie", [group], config.max_batch_tokens)[0])
        seconds["unpadded"].append(
            run_queued(unpadded, "trie", [group], config.max_batch_tokens)[0]
        )
        if peer is not None:
            seconds["peer"].append(peer.run(group)[0])
    return {
        **asdict(cell),
        **latency_of(**{name: runs[_WARM_UPS:] for name, runs in seconds.items()}),
    }


def latency_of(
    padded: Sequence[float], unpadded: Sequence[float], peer: Sequence[float]
) -> dict[str, Any]:
    """Medians in seconds, and medians of the ratios within a repeat; of the peer None where it did not run."""
    return {
        "seconds": statistics.median(padded),
        "unpadded_seconds": statistics.median(unpadded),
        "unpadded_ratio": _ratio(unpadded, padded),
        "peer_seconds": statistics.median(peer) if peer else None,
        "peer_ratio": _ratio(peer, padded) if peer else None,
        "runs": len(padded),
    }


def latency_line(row: dict[str, Any]) -> str:
    peer = (
        f"{row['peer_seconds'] * 1000:>11.2f} ms {row['peer_ratio']:>7.2f}"
        if row["peer_seconds"]
        else f"{'-':>14} {'-':>7}"
    )
    return (
        f"{row['P']:>6} {row['R']:>5} {row['K']:>5} {row['seconds'] * 1000:>7.2f} {row['unpadded_seconds'] * 1000:>7.2f} ms "
        f"{peer} {row['unpadded_ratio']:>18.2f}"
    )


def _both_ways(session: GraphSession) -> tuple[GraphSession, GraphSession]:
    """(with inputs padded to few shapes, without) on the one graph; no prompt is kept from one repeat to the next."""
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
    peer: Transformers | None,
    cell: Cell,
) -> dict[str, Any]:
    """All groups at once, twice to warm up; then in turns with the peer."""
    num_devices = len(parse_devices(config.device))
    engine = EngineConfig(
        device=config.device,
        precision=precision.value,
        max_batch_tokens=config.max_batch_tokens,
        cache_bytes=0,
        prompt_cache_bytes=0,
        max_queue_tokens=1 << 40,
    )
    vocab_size = artifact.manifest.vocab_size
    seconds, peer_seconds = [], []
    with asyncio.Runner() as runner:
        scorer = Scorer.load(artifact.path, engine)
        runner.run(_start(scorer))
        for repeat in range(_WARM_UPS + max(config.repeats // 3, 1)):
            seeds = range(repeat * config.groups, (repeat + 1) * config.groups)
            asked = [_asked(*cell.request(vocab_size, seed)) for seed in seeds]
            started = perf_counter()
            runner.run(_score(scorer, asked))
            seconds.append(perf_counter() - started)
            if peer is not None:
                peer_seconds.append(
                    sum(peer.run(cell.group(vocab_size, seed))[0] for seed in seeds) / num_devices
                )
        runner.run(scorer.close())
    return {
        **asdict(cell),
        "groups": config.groups,
        "devices": num_devices,
        **throughput_of(cell, config.groups, seconds[_WARM_UPS:], peer_seconds[_WARM_UPS:]),
    }


def throughput_of(
    cell: Cell, num_groups: int, seconds: Sequence[float], peer_seconds: Sequence[float]
) -> dict[str, Any]:
    """Tokens as a client counts them: K·(P+R) a group."""
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "tokens_per_s": num_groups * cell.K * (cell.P + cell.R) / median,
        "groups_per_s": num_groups / median,
        "peer_seconds": statistics.median(peer_seconds) if peer_seconds else None,
        "peer_ratio": _ratio(peer_seconds, seconds) if peer_seconds else None,
    }


def throughput_line(row: dict[str, Any]) -> str:
    beside = f", {row['peer_ratio']:.2f} times transformers" if row["peer_ratio"] else ""
    return (
        f"{row['P']}/{row['R']}/{row['K']}: {row['groups_per_s']:,.1f} groups/s, {row['tokens_per_s']:,.0f} tokens/s "
        f"with {row['groups']} groups queued{beside}"
    )


def _asked(prompt: list[int], responses: list[list[int]]) -> Group:
    return Group(prompt=tuple(prompt), responses=tuple(map(tuple, responses)))


async def _start(scorer: Scorer) -> None:
    scorer.start()


async def _score(scorer: Scorer, groups: Sequence[Group]) -> None:
    for scored in await asyncio.gather(*map(scorer.score, groups)):
        assert all(isinstance(reward, Reward) for reward in scored.rewards), scored.rewards


def _ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))
