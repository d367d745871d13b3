"""`kwise bench WHAT …`."""

import argparse
from typing import Any

from kwise.benchmarks import gpu, graph, load, precision, soak, training
from kwise.options import add_options, from_options

_BENCHES: dict[str, tuple[Any, type, str]] = {
    "graph": (
        graph.run,
        graph.GraphBenchConfig,
        "the model pass: share of the machine's peak, prompt reuse, memory, against Optimum's stock padded graph",
    ),
    "gpu": (
        gpu.run,
        gpu.GpuBenchConfig,
        "a GPU: parity with fp32 on the CPU, latency of a group, throughput of a queue, against transformers on the same device",
    ),
    "precision": (
        precision.run,
        precision.PrecisionBenchConfig,
        "precisions on a CPU: seconds and fidelity to fp32 on each runtime, beside transformers in bf16 and the stock padded graph",
    ),
    "load": (
        load.run,
        load.LoadBenchConfig,
        "serving: cost beside the model, cached groups a second, latency, waiting at four fifths of the capacity",
    ),
    "train": (
        training.run,
        training.TrainBenchConfig,
        "training on rankings beside TRL's RewardTrainer on their pairs",
    ),
    "soak": (soak.run, soak.SoakConfig, "memory of a server under every kind of load, for minutes"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (_, config, summary) in _BENCHES.items():
        add_options(
            what.add_parser(name, help=summary, description=summary.capitalize() + "."), config
        )


def run(arguments: argparse.Namespace) -> int:
    start, config, _ = _BENCHES[arguments.what]
    start(from_options(config, arguments))
    return 0
