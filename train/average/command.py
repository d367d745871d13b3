"""The command `kwise average CHECKPOINT CHECKPOINT ... --output DIR`."""

import argparse
import sys
from pathlib import Path

from kwise.errors import ConfigError

_EPILOG = """\
The checkpoints are those of several runs of kwise train from the same model, with one head and with
other options, rankings or seeds. DIR becomes a checkpoint with the mean of their weights, for kwise
eval and kwise export. It takes no more memory or time than one of them (Ramé et al. 2024,
arXiv:2401.12187).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoints and the output."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "checkpoints", metavar="CHECKPOINT", nargs="+", help="directories of kwise train, 2 or more"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="directory of the checkpoint; required"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint and return 0."""
    if arguments.output is None:
        raise ConfigError("--output is required")
    # Imported late, because torch and transformers take seconds: --help must not.
    from kwise.train.average.average import average

    for note in average(arguments.checkpoints, arguments.output):
        print(f"note: {note}", file=sys.stderr)
    print(f"checkpoint: {arguments.output}")
    return 0
