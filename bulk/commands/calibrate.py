"""The command `kwise calibrate`: mean and scale of an artifact's rewards from a reference set."""

import argparse
from pathlib import Path

from kwise.bulk.calibrate_config import CalibrateConfig
from kwise.options import add_options, from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "artifact", metavar="ARTIFACT", type=Path, help="directory written by `kwise export`"
    )
    add_options(parser, CalibrateConfig)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code; 1 if a response was not scored."""
    config = from_options(CalibrateConfig, arguments)
    from kwise.bulk.calibrate import calibrate

    return calibrate(arguments.artifact, config)
