"""`kwise serve ARTIFACT`."""

import argparse
import asyncio
import logging
from pathlib import Path

from kwise.engine.config import EngineConfig
from kwise.engine.options import add_options, from_options
from kwise.engine.server.server import ServerConfig, serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="directory written by `kwise export`")
    add_options(parser, ServerConfig)
    add_options(parser, EngineConfig)


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    engine, server = from_options(EngineConfig, arguments), from_options(ServerConfig, arguments)
    asyncio.run(serve(arguments.artifact, engine, server))
    return 0
