"""`kwise serve ARTIFACT`."""

import argparse
import asyncio
import logging
import os
import signal
import threading
from pathlib import Path

from kwise.engine.config import EngineConfig
from kwise.engine.schedule.batcher import SESSION_THREADS
from kwise.engine.server.server import ServerConfig, serve
from kwise.options import add_options, from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="directory written by `kwise export`")
    add_options(parser, ServerConfig)
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace) -> int:
    signal.signal(
        signal.SIGHUP, signal.SIG_IGN
    )  # until there is something to reload: by default it ends the process
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    engine, server = from_options(EngineConfig, arguments), from_options(ServerConfig, arguments)
    asyncio.run(serve(arguments.artifact, engine, server))
    if any(thread.name.startswith(SESSION_THREADS) for thread in threading.enumerate()):
        # Python's own exit waits for threads, and a pass of a large model that nobody waits for takes its time.
        logging.shutdown()
        os._exit(0)
    return 0
