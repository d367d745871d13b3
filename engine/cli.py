"""The `kwise` command: one subcommand per verb, each defined beside the code that it runs and loaded only when called,
so that `kwise score` starts without importing a runtime and `kwise --help` without importing anything."""

import argparse
import sys
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from kwise.engine.errors import ArtifactError, ConfigError, KwiseError


class _Command(NamedTuple):
    module: str  # has add_arguments(parser) and run(arguments) -> int
    summary: str
    extra: str  # the extra of the distribution that installs what it needs


_COMMANDS = {
    "train": _Command("kwise.train.command", "train a reward model on rankings", "train"),
    "export": _Command("kwise.export.command", "export a checkpoint to an artifact that the engine serves", "export"),
    "serve": _Command("kwise.engine.server.command", "serve an artifact over gRPC", "engine"),
    "score": _Command("kwise.engine.client.score", "rewards of responses, from a running server", ""),
    "rank": _Command("kwise.engine.client.rank", "ranks of responses, from a running server", ""),
    "compare": _Command("kwise.engine.client.compare", "win probabilities of pairs, from a running server", ""),
}


def main(argv: list[str] | None = None) -> int:
    """Run `kwise ARGV`. Exit code 0, 1 for an error of the work itself, 2 for a wrong command line, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="kwise", description="Train, export and serve reward models.")
    parser.add_argument("--version", action="version", version=f"kwise {version('kwise')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary, description=command.summary.capitalize() + ".")
        if name == chosen:
            try:
                module = import_module(command.module)
            except ModuleNotFoundError as missing:
                if missing.name is None or missing.name.split(".")[0] == "kwise":
                    raise
                print(
                    f"kwise {name} needs the package {missing.name}: pip install 'kwise[{command.extra}]'",
                    file=sys.stderr,
                )
                return 1
            module.add_arguments(subparser)
    arguments = parser.parse_args(argv)
    try:
        return int(module.run(arguments))
    except ConfigError as error:
        print(f"kwise {arguments.command}: {error}", file=sys.stderr)
        return 2
    except (ArtifactError, KwiseError, OSError) as error:
        print(f"kwise {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
