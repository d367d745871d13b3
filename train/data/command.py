"""The command line of `kwise data`."""

import argparse
import sys
from typing import Any

from kwise.options import add_options, from_options, sentence
from kwise.train.data import validate
from kwise.train.data.convert import convert
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.edit import dedupe, merge, split
from kwise.train.data.files.output import ignore_closed_pipe
from kwise.train.data.formats.table import FORMATS
from kwise.train.data.stats import stats
from kwise.train.rankings.errors import RankingsError

_TASKS: dict[str, tuple[Any, type, str]] = {
    "convert": (
        convert.run,
        ConvertConfig,
        "convert preference data of other formats to rankings",
    ),
    "validate": (
        validate.run,
        validate.ValidateConfig,
        "check every row of a file as kwise train reads it",
    ),
    "stats": (
        stats.run,
        stats.StatsConfig,
        "describe a file of rankings: ties, lengths, duplicates, leakage, agreement",
    ),
    "split": (
        split.run,
        split.SplitConfig,
        "divide a file into training and validation, without a prompt in both",
    ),
    "dedupe": (
        dedupe.run,
        dedupe.DedupeConfig,
        "remove rankings that repeat an earlier one",
    ),
    "merge": (
        merge.run,
        merge.MergeConfig,
        "make one file of several, and one ranking of those of a prompt with --combine",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per task."""
    tasks = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (_, config, summary) in _TASKS.items():
        subparser = tasks.add_parser(name, help=summary, description=sentence(summary))
        add_options(subparser, config)
        if name == "convert":
            lines = [f"  {name.value:22}{form.summary}" for name, form in FORMATS.items()]
            heading = "formats, recognised by the keys of each row or chosen with --format:"
            subparser.epilog = "\n".join((heading, *lines))
            subparser.formatter_class = argparse.RawDescriptionHelpFormatter


def run(arguments: argparse.Namespace) -> int:
    """Run a task and return its exit code; 1 if the data is not usable.

    Each problem is printed on standard error and begins with FILE:ROW.
    """
    start, config_type, _ = _TASKS[arguments.what]
    config: Any = from_options(config_type, arguments)
    code = 0
    try:
        with ignore_closed_pipe():
            code = int(start(config))
            print(end="", flush=True)
    except RankingsError as error:
        print(error, file=sys.stderr)
        return 1
    return code
