"""The `kwise` command, with one subcommand per verb.

Each subcommand is defined beside the code that it runs, and its module is imported only when it is
called. So `kwise score` starts without importing a runtime, and `kwise --help` imports nothing.
"""

import argparse
import sys
from importlib import import_module
from typing import NamedTuple

from kwise import __version__
from kwise.errors import ArtifactError, ConfigError, KwiseError


class _Command(NamedTuple):
    module: str  # has add_arguments(parser) and run(arguments) -> int
    summary: str
    extra: str  # the extra of the distribution that installs what it needs


_COMMANDS = {
    "data": _Command("kwise.train.data.command", "convert, check and describe preference data", ""),
    "train": _Command("kwise.train.command", "train a reward model on rankings", "train"),
    "export": _Command(
        "kwise.export.command",
        "export a checkpoint to an artifact that the engine serves",
        "export",
    ),
    "bench": _Command(
        "kwise.benchmarks.command",
        "measure the model pass, serving or training on this machine",
        "export",
    ),
    "serve": _Command("kwise.engine.server.command", "serve an artifact over gRPC", "engine"),
    "score": _Command(
        "kwise.client.commands.score", "rewards of responses, from a running server", ""
    ),
    "rank": _Command("kwise.client.commands.rank", "ranks of responses, from a running server", ""),
    "compare": _Command(
        "kwise.client.commands.compare", "win probabilities of pairs, from a running server", ""
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run `kwise ARGV` and return its exit code. All commands follow one rule:

    0    everything was done
    1    the work or a part of it failed: bad data, a damaged artifact, no server, a response that
         could not be scored
    2    the command line is wrong: an option is missing, out of range, or does not suit the model
         or the directory that it names
    130  Ctrl-C
    """
    argv = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in argv if word in _COMMANDS), "")
    try:
        return _run(argv, chosen)
    except ConfigError as error:
        print(f"kwise {chosen}: {error}", file=sys.stderr)
        return 2
    except (ArtifactError, KwiseError, OSError) as error:
        print(f"kwise {chosen}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(argv: list[str], chosen: str) -> int:
    """Parse the arguments and run the command. Of the commands, only `chosen` is imported."""
    parser = argparse.ArgumentParser(
        prog="kwise",
        description="Train, export and serve reward models.",
        allow_abbrev=False,  # an option that is added later must not change what `--epo` means
    )
    parser.add_argument("--version", action="version", version=f"kwise {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = None
    parser_of_command = parser
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary.capitalize() + ".",
            allow_abbrev=False,
        )
        if name == chosen:
            try:
                module = import_module(command.module)
            except ModuleNotFoundError as missing:
                if missing.name is None or missing.name.split(".")[0] == "kwise":
                    raise
                extra = f"[{command.extra}]" if command.extra else ""
                print(
                    f"kwise {name} needs the package {missing.name}: install 'kwise{extra}' "
                    f"(in a clone: pip install '.{extra}')",
                    file=sys.stderr,
                )
                return 1
            module.add_arguments(subparser)
            run = module.run
            parser_of_command = subparser
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:  # parse_args would print the usage of `kwise`, without the command's options
        parser_of_command.error(f"unrecognized arguments: {' '.join(unknown)}")
    assert run is not None, "argparse has refused any other command"
    return int(run(arguments))
