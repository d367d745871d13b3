"""The command line of `kwise bench`."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from kwise.benchmarks.capacity.options import (
    CapacityConfig,
    ClusterBenchConfig,
    QueueBenchConfig,
)
from kwise.benchmarks.experiments.options import EvidenceConfig, ExperimentsConfig
from kwise.benchmarks.options import (
    BulkBenchConfig,
    GpuBenchConfig,
    GraphBenchConfig,
    JoinedBenchConfig,
    LoadBenchConfig,
    PrecisionBenchConfig,
    SharedCacheBenchConfig,
    SoakConfig,
    TrainBenchConfig,
)
from kwise.benchmarks.training.options import HeadsBenchConfig
from kwise.errors import ConfigError
from kwise.options import add_options, from_options
from kwise.train.rankings.errors import RankingsError

# The module with `run(config)`, which is imported when the benchmark runs; its options; and what
# it measures.
_BENCHMARKS: dict[str, tuple[str, type, str]] = {
    "graph": (
        "model.graph",
        GraphBenchConfig,
        "the model pass: share of the machine's peak rate, prompt reuse, memory, and Optimum's "
        "stock padded graph for comparison",
    ),
    "gpu": (
        "gpu.run",
        GpuBenchConfig,
        "a GPU in at most fifteen minutes: agreement with fp32 on the CPU, the change of rewards "
        "with their batch, time per pass, and transformers and vLLM for comparison",
    ),
    "precision": (
        "model.precision",
        PrecisionBenchConfig,
        "precisions on a CPU: time and fidelity to fp32 on each runtime, and transformers in bf16 "
        "and the stock padded graph for comparison",
    ),
    "load": (
        "serving.load",
        LoadBenchConfig,
        "serving: throughput relative to the model alone, groups per second from the cache, "
        "latency, HTTP relative to gRPC, and waiting times under load",
    ),
    "bulk": (
        "bulk",
        BulkBenchConfig,
        "bulk reranking: throughput relative to the model alone, and transformers' pipeline for "
        "comparison",
    ),
    "joined": (
        "serving.joined",
        JoinedBenchConfig,
        "single calls, at once and apart, relative to calls of whole groups",
    ),
    "queue": (
        "capacity.queueing",
        QueueBenchConfig,
        "latency of calls that arrive at random, beside the simulation of the same calls",
    ),
    "cluster": (
        "capacity.studies",
        ClusterBenchConfig,
        "a simulated cluster: routers, autoscaling and the loss of a replica",
    ),
    "capacity": (
        "capacity.machines",
        CapacityConfig,
        "the machines that a load needs, by arithmetic",
    ),
    "shared-cache": (
        "serving.shared_cache",
        SharedCacheBenchConfig,
        "calls with a shared cache whose Redis is healthy, slow and down, relative to calls "
        "without one",
    ),
    "train": (
        "training.beside_trl",
        TrainBenchConfig,
        "training on rankings, and TRL's RewardTrainer on their pairs for comparison",
    ),
    "heads": (
        "training.heads",
        HeadsBenchConfig,
        "whether the standard deviation of several heads tells wrong pairs from right ones better "
        "than the size of the margin, on a frozen backbone",
    ),
    "experiments": (
        "experiments.run",
        ExperimentsConfig,
        "what rankings, their number, their size, the loss and the model are worth, on frozen "
        "states of real responses; cells that were measured before are skipped",
    ),
    "evidence": (
        "experiments.report.run",
        EvidenceConfig,
        "nothing: turn the results of kwise bench experiments into tables and plots",
    ),
    "soak": (
        "serving.soak",
        SoakConfig,
        "memory of a server under all kinds of load for several minutes",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per benchmark."""
    benchmarks = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (_, config, summary) in _BENCHMARKS.items():
        description = f"Measure {summary}."
        add_options(
            benchmarks.add_parser(name, help=summary, description=description),
            config,
        )


def run(arguments: argparse.Namespace) -> int:
    """Run a benchmark and return its exit code; 1 if the rankings are not usable."""
    module, config_type, _ = _BENCHMARKS[arguments.what]
    config: Any = from_options(config_type, arguments)
    artifact = Path(getattr(config, "artifact", "."))
    if not artifact.is_dir():
        raise ConfigError(f"ARTIFACT {artifact}: there is no such directory")
    try:
        import_module(f"kwise.benchmarks.{module}").run(config)
    except RankingsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
