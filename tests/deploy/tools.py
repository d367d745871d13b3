"""Tools of the tests of deploy/: linters, the files, and the command line that a file starts."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kwise.engine.config import EngineConfig
from kwise.engine.server import command
from kwise.engine.server.config import ServerConfig
from kwise.options import from_options

DEPLOY = Path(__file__).parents[2] / "deploy"


def linter(name: str) -> str:
    """Return the path of a program. Skip the test if it is not installed."""
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    path = shutil.which(name, path=paths)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def lint(*arguments: str | Path) -> str:
    """Run a linter, fail if it finds something, and return what it prints."""
    name, *options = map(str, arguments)
    done = subprocess.run([linter(name), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def parsed(arguments: Sequence[str]) -> ServerConfig:
    """Return the server's options of a command line `serve ARTIFACT …`.

    An option that does not exist, or a value out of range, fails the test.
    """
    assert arguments[0] == "serve"
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command.add_arguments(parser)
    namespace = parser.parse_args(arguments[1:])
    from_options(EngineConfig, namespace)
    return from_options(ServerConfig, namespace)
