"""The command `kwise serve ARTIFACT --ray`."""

import argparse
import signal
import threading
from pathlib import Path

from kwise.cluster import config
from kwise.errors import ConfigError, LibraryFailed

APPLICATION = "kwise"
_CONNECT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "artifact",
        nargs="+",
        help="directories written by kwise export, at the same path on each machine; requests "
        "that name no model get the first",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=50051,
        metavar="PORT",
        help="TCP port for gRPC on each machine that has a replica (default: 50051)",
    )
    config.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve on the Ray cluster until SIGTERM or Ctrl-C, and return 0.

    Ray takes the cluster of RAY_ADDRESS, or the one of this machine, or starts one.
    """
    if not 0 < arguments.port < 1 << 16:
        raise ConfigError(f"--port is {arguments.port}; it must be between 1 and {(1 << 16) - 1}")
    paths = tuple(str(Path(path).absolute()) for path in arguments.artifact)
    options = config.from_arguments(paths, arguments)
    # Imported late: --help and a wrong option need none of Ray's packages.
    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]

    from kwise.cluster.serve import SERVICER_FUNCTIONS, build

    application = build(options)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ray.init(ignore_reinit_error=True)
    serve.start(
        grpc_options={"port": arguments.port, "grpc_servicer_functions": SERVICER_FUNCTIONS}
    )
    try:
        serve.run(application, name=APPLICATION, route_prefix="/kwise")
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise LibraryFailed(
            f"Ray Serve did not start the application: {lines[-1].strip() if lines else error}"
        ) from error
    try:
        _check_port(arguments.port)
        print(f"serving {', '.join(paths)} on Ray, gRPC port {arguments.port}", flush=True)
        ended.wait()
    finally:
        serve.delete(APPLICATION)
    return 0


def _check_port(port: int) -> None:
    """Raise ConfigError if nothing listens. A running Serve ignores the gRPC options of others."""
    import grpc

    with grpc.insecure_channel(f"localhost:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_S)
        except grpc.FutureTimeoutError:
            raise ConfigError(
                f"--port {port}: Ray Serve already runs on this cluster, with other gRPC options, "
                "which cannot be changed while it runs; use its port, or run `serve shutdown` first"
            ) from None
