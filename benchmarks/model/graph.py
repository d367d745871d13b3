"""The speed of the model pass, relative to the machine's peak and to a padded graph.

Physics: a group of K responses of R tokens to a prompt of P tokens is K·(P + R) rows in a padded
batch and P + K·R rows in a trie. A row costs two operations per weight, and each pair of a token
and one that it attends to 4·H·D in every layer. Both graphs come from one checkpoint and run on one
ONNX Runtime in turns, after a warm-up. Each figure is a median over repeats, each ratio the median
of ratios within a repeat, and the peak rate is measured in each repeat. Each repeat has a new
prompt, so that the prompt cache does not help. "~": the padded graph's attention would need many
GB, so it ran one sequence of the group, and its time is multiplied by K.
"""

import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from kwise.benchmarks import memory
from kwise.benchmarks.model import prompt_reuse
from kwise.benchmarks.model.baselines import MAX_PADDED_ROWS, stock_session
from kwise.benchmarks.model.flops import PeakRate, cost_of_graph
from kwise.benchmarks.options import Cell, GraphBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.workload import read_trie_artifact, real_groups, run_queued
from kwise.engine.artifact.read import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.model.layouts.padded import PaddedLayout
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.errors import ConfigError


def run(config: GraphBenchConfig) -> None:
    """Print the tables and write the figures to `config.json`."""
    artifact = read_trie_artifact(config.artifact)
    if Precision.FP32 not in artifact.manifest.available_precisions:
        raise ConfigError(f"{config.artifact}: it has no fp32, which this benchmark measures")
    results: dict[str, Any] = {"artifact": artifact.manifest.name}
    benchmark = _GraphBenchmark(config, artifact)
    print(
        "     P     R     K   seconds    rows   tokens/s  of peak   stock graph   ratio"
        "   max difference"
    )
    results["cells"] = []
    for cell in config.parsed_cells():
        results["cells"].append(row := benchmark.measure_cell(cell))
        print(_cell_line(row), flush=True)
    if config.rankings:
        results["real_groups"] = figures = benchmark.measure_real_groups(Path(config.rankings))
        print(
            f"real groups: {figures['groups']} in {figures['seconds']:.2f} s, "
            f"{figures['tokens_per_s']:,.0f} tokens/s, {figures['share_of_peak']:.3f} of peak"
        )
    if config.prompt_reuse:
        results["reuse"] = prompt_reuse.run(
            benchmark.session, artifact, config.parsed_cells(), config.repeats
        )
    del benchmark  # frees its memory
    if config.memory:
        results["memory"] = memory.run(artifact, config.checkpoint)
    if config.json:
        write_results(config.json, "graph", config, results)


class _GraphBenchmark:
    """Sessions of both graphs, and what their times are compared with."""

    def __init__(self, config: GraphBenchConfig, artifact: Artifact) -> None:
        self.config, self.artifact = config, artifact
        self.session = _open_session(config, artifact)
        threads = EngineConfig(threads=config.threads).runtime_threads
        self.stock = stock_session(config.checkpoint, threads) if config.checkpoint else None
        self.cost = cost_of_graph(
            artifact.graph_path(), artifact.manifest.graphs[Precision.FP32].num_tile_groups
        )
        self.peak_rate = PeakRate(threads)

    def measure_cell(self, cell: Cell) -> dict[str, Any]:
        """Measure one group at a time, batched by the engine's policy."""
        is_single = cell.K * (cell.P + cell.R) > MAX_PADDED_ROWS
        seconds, peaks, stock_seconds, differences = [], [], [], []
        ends_at = perf_counter() + self.config.max_seconds
        for repeat in range(self.config.repeats + 1):
            group = cell.group(self.artifact.manifest.vocab_size, repeat)
            group_s, rewards = run_queued(self.session, [group], self.config.max_batch_tokens)
            seconds.append(group_s)
            peaks.append(self.peak_rate())
            if self.stock is not None:
                part = group[:1] if is_single else group
                part_s, expected = run_queued(
                    self.stock, [part], sys.maxsize, PaddedLayout.new_batch
                )
                stock_seconds.append(part_s * len(group) / len(part))
                differences.append(float(np.abs(rewards[: len(part)] - expected).max()))
            if perf_counter() > ends_at:
                break
        if len(seconds) > 1:  # drop the warm-up
            seconds, peaks, stock_seconds = seconds[1:], peaks[1:], stock_seconds[1:]
        operations = self.cost.of([sequence.token_ids for sequence in group])
        rows = cell.P + cell.K * cell.R
        ratios = [b / a for a, b in zip(seconds, stock_seconds, strict=False)]
        return {
            **asdict(cell),
            "rows": rows,
            "runs": len(seconds),
            "seconds": statistics.median(seconds),
            "tokens_per_s": rows / statistics.median(seconds),
            "share_of_peak": _share_of_peak(operations, seconds, peaks),
            "peak_flops": statistics.median(peaks),
            "stock_seconds": statistics.median(stock_seconds) if stock_seconds else None,
            "stock_by_one_sequence": is_single,
            "ratio": statistics.median(ratios) if ratios else None,
            "max_difference": max(differences, default=None),
        }

    def measure_real_groups(self, path: Path) -> dict[str, Any]:
        """Measure all groups waiting at once, as in a busy server.

        Each run has a new session, so that no prompt is cached.
        """
        groups = real_groups(self.artifact, path, self.config.num_groups)
        sequences = [sequence.token_ids for group in groups for sequence in group]
        operations = self.cost.of(sequences)
        warm_up = Cell(P=64, R=64, K=2).group(self.artifact.manifest.vocab_size, 0)
        seconds, peaks = [], []
        for _ in range(min(self.config.repeats, 3)):
            session = _open_session(self.config, self.artifact)
            run_queued(session, [warm_up], self.config.max_batch_tokens)
            seconds.append(run_queued(session, groups, self.config.max_batch_tokens)[0])
            peaks.append(self.peak_rate())
        return {
            "groups": len(groups),
            "seconds": statistics.median(seconds),
            "tokens_per_s": sum(map(len, sequences)) / statistics.median(seconds),
            "share_of_peak": _share_of_peak(operations, seconds, peaks),
        }


def _share_of_peak(operations: int, seconds: list[float], peaks: list[float]) -> float:
    return statistics.median(operations / s / p for s, p in zip(seconds, peaks, strict=True))


def _cell_line(row: dict[str, Any]) -> str:
    stock, ratio, difference = "-", "-", "-"
    if row["stock_seconds"]:
        stock = f"{'~' if row['stock_by_one_sequence'] else ''}{row['stock_seconds']:.3f} s"
        ratio = f"{row['ratio']:.2f}"
        difference = f"{row['max_difference']:.1e}"
    return (
        f"{row['P']:>6} {row['R']:>5} {row['K']:>5} {row['seconds']:>9.3f} {row['rows']:>7} "
        f"{row['tokens_per_s']:>10,.0f} {row['share_of_peak']:>8.3f} {stock:>13} {ratio:>7} "
        f"{difference:>16}"
    )


def _open_session(config: GraphBenchConfig, artifact: Artifact) -> GraphSession:
    engine = EngineConfig(threads=config.threads)
    return GraphSession(
        artifact,
        threads=engine.runtime_threads,
        prompt_cache_bytes=engine.effective_prompt_cache_bytes,
    )
