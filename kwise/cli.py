"""The `kwise` command, with one subcommand per verb.

Each subcommand is defined next to the code that it runs, and its module is imported only when it is
called. That module declares options and imports the standard library only, so that `--help` works
and is quick whatever is installed. The packages that do the work are imported when the work begins.
"""

import argparse
import os
import select
import signal
import sys
from importlib import import_module
from typing import Any, NamedTuple, NoReturn, TextIO

from kwise import __version__
from kwise.command_errors import exit_code_of, report
from kwise.libraries.home import ensure_home
from kwise.libraries.output import silence_libraries
from kwise.libraries.telemetry import disable_telemetry
from kwise.options import sentence


class _Command(NamedTuple):
    module: str  # has add_arguments(parser) and run(arguments) -> int
    summary: str
    extra: str  # the extra of the distribution that installs what it needs
    on_ray: str = ""  # the module that takes over with --ray, if there is one


_COMMANDS = {
    "data": _Command("kwise.train.data.command", "convert, check and describe preference data", ""),
    "recipes": _Command(
        "kwise.train.options.recipes_command", "show the options of published training runs", ""
    ),
    "train": _Command("kwise.train.command", "train a reward model on rankings", "train"),
    "average": _Command(
        "kwise.train.average.command",
        "make one checkpoint from the mean weights of several runs",
        "train",
    ),
    "eval": _Command(
        "kwise.evaluation.command", "measure how well rewards agree with rankings", "eval"
    ),
    "export": _Command(
        "kwise.export.command",
        "export a checkpoint to an artifact that the engine serves",
        "export",
    ),
    "bench": _Command(
        "kwise.benchmarks.command",
        "measure the model pass, serving or training on this machine",
        "bench",
    ),
    "serve": _Command(
        "kwise.engine.server.command",
        "serve an artifact over gRPC and HTTP",
        "engine",
        on_ray="kwise.cluster.serve_command",
    ),
    "rerank": _Command(
        "kwise.bulk.commands.rerank",
        "rewards, ranks or pairs of all groups of a file or data set",
        "engine",
        on_ray="kwise.cluster.rerank_command",
    ),
    "score": _Command(
        "kwise.bulk.commands.score", "rewards of responses, from a running server", ""
    ),
    "rank": _Command("kwise.bulk.commands.rank", "ranks of responses, from a running server", ""),
    "compare": _Command(
        "kwise.bulk.commands.compare", "win probabilities of pairs, from a running server", ""
    ),
    "calibrate": _Command(
        "kwise.bulk.commands.calibrate",
        "set the mean and scale of an artifact's rewards from a reference set",
        "engine",
    ),
    "models": _Command(
        "kwise.bulk.commands.models", "list, load and unload the models of a running server", ""
    ),
    "info": _Command(
        "kwise.bulk.commands.info", "describe an artifact, or what a running server serves", ""
    ),
    "top": _Command("kwise.bulk.commands.top", "show what a running server does, live", ""),
    "rl-path": _Command(
        "kwise.rl.command", "print the path of the file that an RL library takes", ""
    ),
}


class _Parser(argparse.ArgumentParser):
    """A parser with the option `--debug`, as all parsers of its subcommands have it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # No abbreviations: an option that is added later must not change what `--epo` means.
        super().__init__(*args, **{"allow_abbrev": False, **options})
        # argparse says "invalid int value".
        self.register("type", int, _integer)
        self.register("type", float, _number)
        self.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,  # or a subcommand would overwrite `kwise --debug train`
            help="show the traceback of an error, and what other libraries print",
        )

    def error(self, message: str) -> NoReturn:
        """End with one line. The usage of some commands has thirty lines, which would hide it."""
        problem = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {problem}; `{self.prog} --help` lists the options\n")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def main(argv: list[str] | None = None) -> int:
    """Run `kwise ARGV` and return its exit code. All commands follow one rule:

    0    everything was done
    1    the work or a part of it failed: bad data, a damaged artifact, no server, a response that
         could not be scored, a missing package, a bug
    2    the command line is wrong: an option is missing, out of range, or does not suit the model
         or the directory that it names; or a file that it names does not exist or cannot be read
    130  Ctrl-C
    """
    argv = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in argv if word in _COMMANDS), "")
    debug = "--debug" in argv
    if chosen == "serve":
        # SIGHUP, which reloads the model of a running server, would end one that is starting.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    disable_telemetry()
    ensure_home()
    if not debug:
        silence_libraries()
    try:
        code = _run(argv, chosen)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the last resort; nothing is hidden
        if isinstance(error, BrokenPipeError) and (ended := _reader_gone()) is not None:
            return ended
        extra = _module_and_extra(chosen, argv)[1] if chosen else ""
        report(error, program=f"kwise {chosen}".strip(), extra=extra, debug=debug)
        return exit_code_of(error, argv)


def _module_and_extra(name: str, argv: list[str]) -> tuple[str, str]:
    """Return the module and the extra of a command; `--ray` in `argv` may name other ones."""
    command = _COMMANDS[name]
    if command.on_ray and "--ray" in argv:
        return command.on_ray, "ray"
    return command.module, command.extra


def _reader_gone() -> int | None:
    """Return the exit code if the reader of an output has gone (`| head`), else None.

    Who reads the result may stop early. But if standard error has gone (`2>&1 | head`), a line of
    progress may have ended the work. None stands for another pipe: that of a worker, or a socket.
    """
    gone = [stream for stream in (sys.stdout, sys.stderr) if stream and _has_no_reader(stream)]
    for stream in gone:  # Python flushes at exit and needs somewhere to write to
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return None if not gone else int(sys.stderr in gone)


def _has_no_reader(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # replaced by an object without a descriptor, or closed
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _run(argv: list[str], chosen: str) -> int:
    """Parse the arguments and run the command. Of the commands, only `chosen` is imported."""
    parser = _Parser(prog="kwise", description="Train, export and serve reward models.")
    parser.add_argument("--version", action="version", version=f"kwise {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = None
    parser_of_command: argparse.ArgumentParser = parser
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(
            name, help=command.summary, description=sentence(command.summary)
        )
        if name == chosen:
            if command.on_ray:
                subparser.add_argument(
                    "--ray",
                    action="store_true",
                    help="work on a Ray cluster; `--ray --help` shows the options there",
                )
            module = import_module(_module_and_extra(name, argv)[0])
            module.add_arguments(subparser)
            run = module.run
            parser_of_command = subparser
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:  # parse_args would print the usage of `kwise`, without the command's options
        parser_of_command.error(f"unrecognized arguments: {' '.join(unknown)}")
    assert run is not None, "argparse has refused any other command"
    return int(run(arguments))
