"""How near is the model pass to what the machine can do, and how far from the stock padded graph?

Physics: a group of K responses of R tokens to a prompt of P tokens is K·(P+R) rows padded and P + K·R rows as a trie; a row
costs two operations a weight, and each visible pair of tokens 4·H·D in every layer. Both graphs come from one checkpoint and run
on one ONNX Runtime in turns, after a warm-up; each figure is a median over repeats, each ratio the median of ratios within
a repeat, with the peak measured beside. Every repeat has a new prompt, so nothing is left in the prompt cache from the one
before. Where the padded graph's attention would need many GB, it runs one sequence of the group, times K, marked "~".
"""

import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from kwise.benchmarks import machine, memory, reuse
from kwise.benchmarks.peers import MOST_PADDED_ROWS, stock_session
from kwise.benchmarks.workload import Cell, parse_cells, read_trie, real_groups, run_queued
from kwise.benchmarks.yardstick import Peak, cost_of_graph
from kwise.engine.artifact import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.model.precision import Precision
from kwise.engine.model.session import GraphSession
from kwise.errors import ConfigError
from kwise.options import check_bounds, option


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphBenchConfig:
    """What to measure. Raises ConfigError, naming the option and its bound."""

    artifact: str = option(help="an artifact of the trie layout")
    checkpoint: str = option(
        "",
        "its checkpoint, to export the stock padded graph from and to measure an export's memory",
    )
    cells: str = option(
        "64/64/9,256/128/9,1024/128/9",
        "groups P/R/K: tokens of the prompt, tokens of a response, responses",
    )
    rankings: str = option("", "real groups: a JSON Lines file of rankings, .gz or not")
    num_groups: int = option(24, "how many of the real groups", minimum=1)
    repeats: int = option(5, "runs of each cell, after one to warm up", minimum=1)
    max_seconds: float = option(
        120.0, "no more runs of a cell once it has taken so long; it has one at least", minimum=0
    )
    threads: int = option(0, "threads of the runtime; 0 for one per core", minimum=0)
    max_batch_tokens: int = option(
        EngineConfig().max_batch_tokens, "as in `kwise serve`", minimum=16
    )
    prompt_reuse: bool = option(
        True, "also measure calls that share a prompt, in a row and from several connections"
    )
    memory: bool = option(True, "also measure peak memory and the time to start")
    json: str = option("", "file for all figures, with the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cells()

    def parsed_cells(self) -> list[Cell]:
        return parse_cells(self.cells)

    def session(self, artifact: Artifact) -> GraphSession:
        config = EngineConfig(threads=self.threads)
        return GraphSession(
            artifact, threads=config.runtime_threads, prompt_cache_bytes=config.prompt_cache_bytes
        )


def run(config: GraphBenchConfig) -> None:
    """Print the tables, and write the figures where --json says."""
    artifact = read_trie(config.artifact)
    if Precision.FP32 not in artifact.manifest.available_precisions:
        raise ConfigError(f"{config.artifact}: it holds no fp32, which this benchmark is of")
    results: dict[str, Any] = {
        "artifact": artifact.manifest.name,
        "options": machine.plain(asdict(config)),
    }
    bench = _Bench(config, artifact)
    print(
        "     P     R     K   seconds    rows   tokens/s  of peak   stock graph   ratio   largest difference"
    )
    results["cells"] = [_shown(bench.cell(cell)) for cell in config.parsed_cells()]
    if config.rankings:
        results["real_groups"] = bench.real(Path(config.rankings))
        print(
            "real groups: {groups} in {seconds:.2f} s, {tokens_per_s:,.0f} tokens/s, {share_of_peak:.3f} of peak".format(
                **results["real_groups"]
            )
        )
    if config.prompt_reuse:
        results["reuse"] = reuse.run(bench.session, artifact, config.parsed_cells(), config.repeats)
    del bench
    if config.memory:
        results["memory"] = memory.run(artifact, config.checkpoint)
    if config.json:
        machine.write(Path(config.json), results)


class _Bench:
    """Sessions of both graphs and the yardsticks."""

    def __init__(self, config: GraphBenchConfig, artifact: Artifact) -> None:
        self.config, self.artifact = config, artifact
        self.session = config.session(artifact)
        threads = EngineConfig(threads=config.threads).runtime_threads
        self.stock = stock_session(config.checkpoint, threads) if config.checkpoint else None
        self.cost = cost_of_graph(
            artifact.graph_path(), artifact.manifest.graphs[Precision.FP32].num_tile_groups
        )
        self.peak = Peak(threads)

    def cell(self, cell: Cell) -> dict[str, Any]:
        """One group at a time, as the engine's queue batches it."""
        single = cell.K * (cell.P + cell.R) > MOST_PADDED_ROWS
        seconds, peaks, stock_seconds, differences = [], [], [], []
        give_up_at = perf_counter() + self.config.max_seconds
        for repeat in range(self.config.repeats + 1):
            group = cell.group(self.artifact.manifest.vocab_size, repeat)
            took, rewards = run_queued(self.session, "trie", [group], self.config.max_batch_tokens)
            seconds.append(took)
            peaks.append(self.peak())
            if self.stock is not None:
                part = group[:1] if single else group
                stock_took, expected = run_queued(self.stock, "padded", [part], sys.maxsize)
                stock_seconds.append(stock_took * len(group) / len(part))
                differences.append(float(np.abs(rewards[: len(part)] - expected).max()))
            if perf_counter() > give_up_at:
                break
        if len(seconds) > 1:
            seconds, peaks, stock_seconds = (
                seconds[1:],
                peaks[1:],
                stock_seconds[1:],
            )  # without the warm-up
        operations = self.cost.of([sequence.token_ids for sequence in group])
        rows = cell.P + cell.K * cell.R
        return {
            **asdict(cell),
            "rows": rows,
            "runs": len(seconds),
            "seconds": statistics.median(seconds),
            "tokens_per_s": rows / statistics.median(seconds),
            "share_of_peak": statistics.median(
                operations / s / p for s, p in zip(seconds, peaks, strict=True)
            ),
            "peak_flops": statistics.median(peaks),
            "stock_seconds": statistics.median(stock_seconds) if stock_seconds else None,
            "stock_by_one_sequence": single,
            "ratio": statistics.median(b / a for a, b in zip(seconds, stock_seconds, strict=False))
            if stock_seconds
            else None,
            "max_difference": max(differences, default=None),
        }

    def real(self, path: Path) -> dict[str, Any]:
        """All groups waiting at once, as in a busy server; a session of its own each time, so that no prompt is cached."""
        groups = real_groups(self.artifact, path, self.config.num_groups)
        sequences = [sequence.token_ids for group in groups for sequence in group]
        operations, seconds, peaks = self.cost.of(sequences), [], []
        for _ in range(min(self.config.repeats, 3)):
            session = self.config.session(self.artifact)
            run_queued(
                session,
                "trie",
                [Cell(P=64, R=64, K=2).group(self.artifact.manifest.vocab_size, 0)],
                4096,
            )
            seconds.append(run_queued(session, "trie", groups, self.config.max_batch_tokens)[0])
            peaks.append(self.peak())
        return {
            "groups": len(groups),
            "seconds": statistics.median(seconds),
            "tokens_per_s": sum(map(len, sequences)) / statistics.median(seconds),
            "share_of_peak": statistics.median(
                operations / s / p for s, p in zip(seconds, peaks, strict=True)
            ),
        }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    stock = (
        f"{'~' if row['stock_by_one_sequence'] else ''}{row['stock_seconds']:.3f} s"
        if row["stock_seconds"]
        else "-"
    )
    ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
    difference = f"{row['max_difference']:.1e}" if row["max_difference"] is not None else "-"
    print(
        f"{row['P']:>6} {row['R']:>5} {row['K']:>5} {row['seconds']:>9.3f} {row['rows']:>7} {row['tokens_per_s']:>10,.0f} "
        f"{row['share_of_peak']:>8.3f} {stock:>13} {ratio:>7} {difference:>20}",
        flush=True,
    )
    return row
