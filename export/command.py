"""`kwise export CHECKPOINT ARTIFACT`."""

import argparse
import sys

from kwise.engine.options import add_options, from_options
from kwise.export.exporter import ExportConfig, export
from kwise.export.parity import ParityError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ExportConfig)


def run(arguments: argparse.Namespace) -> int:
    """0, or 1 where parity fails and nothing is written."""
    try:
        artifact = export(from_options(ExportConfig, arguments))
    except ParityError as error:
        print(f"kwise export: nothing was written: {error}", file=sys.stderr)
        return 1
    manifest = artifact.manifest
    parity = manifest.parity
    print(
        f"{artifact.path}: layout {manifest.layout}, {manifest.dtype}, up to {manifest.max_tokens} tokens\n"
        f"  parity with the checkpoint over {parity['num_sequences']} conversations of {parity['shortest_tokens']} to "
        f"{parity['longest_tokens']} tokens: largest difference {parity['max_difference']:.1e}, "
        f"with company {parity['max_change_with_company']:.1e}, allowed {parity['tolerance']:.1e}\n"
        f"  fingerprint {manifest.fingerprint}"
    )
    return 0
