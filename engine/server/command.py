"""The command `kwise serve ARTIFACT`."""

import argparse
import asyncio
import logging
import os
import signal
import threading
from pathlib import Path

from kwise.engine.config import EngineConfig
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.models.source import is_directory, parse_source
from kwise.errors import ConfigError
from kwise.options import add_options, from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "artifact",
        nargs="+",
        help="directory written by `kwise export`, or NAME=DIRECTORY to serve it under that name; "
        "requests that name no model get the first",
    )
    add_options(parser, ServerConfig)
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends the process, and return 0.

    `kwise.cli` has made the process ignore SIGHUP, until there is an artifact to reload.
    """
    engine, server = from_options(EngineConfig, arguments), from_options(ServerConfig, arguments)
    sources = [parse_source(argument) for argument in arguments.artifact]
    for argument, source in zip(arguments.artifact, sources, strict=True):
        _check_directory(argument, source.path)
    # Imported late: --help and a wrong option need none of the engine's packages.
    from kwise.engine.server.logs.form import configure_log
    from kwise.engine.server.serve import serve

    if os.getpid() == 1:
        # The kernel does not end process 1 by a signal that has no handler. Without these, a
        # container that still loads its model would run until it is killed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end_at_once)
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C ends a server that still loads its model, as SIGTERM does. asyncio would wait for
        # the end of the load. `serve` handles both signals once it serves.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    configure_log(server.log_level, server.log_format)
    asyncio.run(serve(sources, engine, server))
    if _is_computing():
        # A pass of the model or a load still runs, and nobody waits for it. Python's own exit would
        # wait for it, or tear the runtime down under it.
        logging.shutdown()
        os._exit(0)
    return 0


def _end_at_once(number: int, _: object) -> None:
    """End the process with the exit code that a shell shows for one that a signal has ended."""
    os._exit(128 + number)


def _check_directory(argument: str, path: Path) -> None:
    """Check that the path of an argument may have an artifact.

    Raises:
        ConfigError: it is not a directory.
    """
    if not is_directory(path):
        try:
            problem = "is not a directory" if path.exists() else "there is no such directory"
        except OSError as error:
            problem = f"cannot be reached: {error.strerror or error}"
        raise ConfigError(f"ARTIFACT {argument}: {problem}; give one that kwise export has written")


def _is_computing() -> bool:
    from kwise.engine.schedule.batcher import SESSION_THREADS
    from kwise.engine.server.models.loader import LOADER_THREAD

    names = (SESSION_THREADS, LOADER_THREAD)
    return any(thread.name.startswith(names) for thread in threading.enumerate())
