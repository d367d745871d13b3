"""`kwise bench WHAT …`."""

import argparse

from kwise.benchmarks import graph
from kwise.engine.options import add_options, from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    summary = "the model pass: share of the machine's peak, prompt reuse, memory, against Optimum's stock padded graph"
    add_options(what.add_parser("graph", help=summary, description=summary.capitalize() + "."), graph.GraphBenchConfig)


def run(arguments: argparse.Namespace) -> int:
    graph.run(from_options(graph.GraphBenchConfig, arguments))
    return 0
