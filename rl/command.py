"""`kwise rl-path`: print the path of the file that an RL library takes."""

import argparse
from pathlib import Path

# By library, the file in rl/files/. The other libraries take a dotted name or an address, which
# docs/rl.md lists.
FILES = {"ms-swift": "kwise_ms_swift.py", "openrlhf": "kwise_openrlhf.py"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "library",
        metavar="LIBRARY",
        choices=sorted(FILES),
        help=f"the library that takes a file: {' or '.join(sorted(FILES))}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the path and return the exit code."""
    print(Path(__file__).parent / "files" / FILES[arguments.library])
    return 0
