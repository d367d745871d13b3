"""The command `kwise rerank`: the rewards of all groups of a file, folder or data set."""

import argparse

from kwise.bulk.config import RerankConfig
from kwise.options import add_options, from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `RerankConfig`."""
    add_options(parser, RerankConfig)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code; 1 if a row or a response was not scored."""
    config = from_options(RerankConfig, arguments)
    from kwise.bulk.rerank import rerank

    return rerank(config)
