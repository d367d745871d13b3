"""The command `kwise serve ARTIFACT --ray`."""

import argparse
import signal
import threading
from typing import Any

from kwise.cluster import config
from kwise.errors import ConfigError, LibraryFailed

APPLICATION = "kwise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "artifact",
        nargs="+",
        help="directory written by kwise export, at the same path on each machine, or "
        "NAME=DIRECTORY to serve it under that name; requests that name no model get the first",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=50051,
        metavar="PORT",
        help="TCP port for gRPC on each machine that has a replica; a running Serve keeps its "
        "own (default: 50051)",
    )
    config.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve on the Ray cluster until SIGTERM or Ctrl-C, and return 0.

    Ray takes the cluster of RAY_ADDRESS, or the one of this machine, or starts one.
    """
    if not 0 < arguments.port < 1 << 16:
        raise ConfigError(f"--port is {arguments.port}; it must be between 1 and {(1 << 16) - 1}")
    options = config.from_arguments(arguments.artifact, arguments)
    # Imported late: --help and a wrong option need none of Ray's packages.
    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]

    from kwise.cluster.serve import SERVICER_FUNCTIONS, build

    application = build(options)
    ray.init(ignore_reinit_error=True)
    was_running = bool(serve.status().proxies)
    serve.start(
        grpc_options={"port": arguments.port, "grpc_servicer_functions": SERVICER_FUNCTIONS}
    )
    try:
        _deploy(application)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Only now: Ray has set handlers of its own.
            signal.signal(number, lambda *_: ended.set())
        port = "the gRPC port of the Serve that was running" if was_running else arguments.port
        print(f"serving {', '.join(arguments.artifact)} on Ray, port: {port}", flush=True)
        ended.wait()
    finally:
        serve.delete(APPLICATION)
    return 0


def _deploy(application: Any) -> None:
    """Start the application, and return once each replica is ready.

    Raises:
        LibraryFailed: Ray Serve could not start it; with the last line of what it says.
    """
    from ray import serve  # pyright: ignore[reportMissingImports]

    try:
        serve.run(application, name=APPLICATION, route_prefix="/kwise")
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else "it gives no reason"
        raise LibraryFailed(f"Ray Serve did not start the application: {reason}") from error
