"""`kwise data WHAT …`."""

import argparse
import sys
from typing import Any

from kwise.options import add_options, from_options
from kwise.train.data import convert, stats, validate
from kwise.train.data.formats.table import FORMATS
from kwise.train.data.output import reader_may_leave
from kwise.train.rankings.errors import RankingsError

_TASKS: dict[str, tuple[Any, type, str]] = {
    "convert": (convert.run, convert.ConvertConfig, "rankings of preference data in other formats"),
    "validate": (validate.run, validate.ValidateConfig, "check every line of a file of rankings"),
    "stats": (
        stats.run,
        stats.StatsConfig,
        "what is in a file of rankings: ties, lengths, duplicates, leakage, agreement",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (_, config, summary) in _TASKS.items():
        subparser = what.add_parser(name, help=summary, description=summary.capitalize() + ".")
        add_options(subparser, config)
        if name == "convert":
            formats = (f"  {name.value:22}{form.summary}" for name, form in FORMATS.items())
            subparser.epilog = "\n".join(
                ("formats, told by the keys of the first row or given by --format:", *formats)
            )
            subparser.formatter_class = argparse.RawDescriptionHelpFormatter


def run(arguments: argparse.Namespace) -> int:
    """0, or 1 where the data is not usable; each problem begins with FILE:ROW."""
    start, config_type, _ = _TASKS[arguments.what]
    config: Any = from_options(config_type, arguments)
    code = 0
    try:
        with reader_may_leave():
            code = int(start(config))
            print(end="", flush=True)  # here, where a reader that has gone costs no complaint
    except RankingsError as error:
        print(error, file=sys.stderr)
        return 1
    return code
