"""The server process: bind the port, load the model, serve, and end in order.

The port is bound before the model is loaded, so that a port that is taken is reported at once.
Calls that arrive meanwhile wait in the connection's handshake. The health service says SERVING only
while requests are answered.
"""

import asyncio
import errno
import logging
import signal
import socket
from contextlib import suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.garbage import freeze_heap
from kwise.engine.server.grpc_service import GrpcRewardService
from kwise.engine.server.reload import Reloader
from kwise.engine.server.service import RequestLimits, RewardService
from kwise.errors import ConfigError
from kwise.protos.kwise.v1 import reward_pb2, reward_pb2_grpc

_LOG = logging.getLogger(__name__)

# The time that clients get to receive a reply that has been sent.
_LAST_REPLIES_S = 1.0
_SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name


async def serve(artifact: Path, engine: EngineConfig, config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, and reload the artifact at SIGHUP.

    At the end, new requests are refused, and running ones get `grace_s` seconds to finish. What
    still waits then gets UNAVAILABLE.

    Raises:
        ArtifactError: the artifact is damaged or fails its golden check.
        ConfigError: the port is taken, or an option does not suit the artifact.
    """
    server = grpc.aio.server(options=_grpc_options(config))
    try:
        port = server.add_insecure_port(f"{config.host}:{config.port}")
    except RuntimeError as error:
        raise ConfigError(
            f"--host {config.host} --port {config.port}: {_bind_problem(config) or error}"
        ) from None
    limits = RequestLimits(max_responses=config.max_responses, max_pairs=config.max_pairs)
    service = RewardService(Scorer.load(artifact, engine), limits)
    service.scorer.start()
    freeze_heap()
    try:
        health_service = _add_services(server, service)
        await health_service.set("", health_pb2.HealthCheckResponse.SERVING)
        await health_service.set(_SERVICE, health_pb2.HealthCheckResponse.SERVING)
        reloader = Reloader(service, artifact, engine)
        reloading = asyncio.create_task(reloader.run(), name="kwise reload")
        stopping = _handle_signals(reloader)
        await server.start()
        _LOG.info("serving %s on %s:%d", service.scorer.description, config.host, port)
        await stopping.wait()
        _LOG.info("draining: running requests get %g s to finish", config.grace_s)
        reloading.cancel()
        await health_service.enter_graceful_shutdown()
        await _drain(server, service, config.grace_s)
    finally:
        await service.close()
    _LOG.info("stopped")


def _grpc_options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # A second server on the port must fail. With this on, it would take half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client whose machine is gone is noticed after 80 s, and its groups leave the queue.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def _bind_problem(config: ServerConfig) -> str:
    """Return why the port cannot be bound, in the words of the operating system; "" if it can.

    gRPC does not tell.
    """
    try:
        for family, kind, _, _, address in socket.getaddrinfo(
            config.host.strip("[]"), config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind) as probe:
                probe.bind(address)
    except OSError as error:
        hint = (
            "; stop the other server, or choose another --port"
            if error.errno == errno.EADDRINUSE
            else ""
        )
        return f"cannot listen there: {error.strerror or error}{hint}"
    return ""


async def _drain(server: grpc.aio.Server, service: RewardService, grace_s: float) -> None:
    """Answer or refuse all calls, then stop the server.

    This waits for calls of the reward service only. Others may never end: a watch of the health
    service, say.
    """
    await _until_quiet(service)  # calls sent before the signal are served
    service.drain()
    await _until_quiet(service)  # calls sent after it are refused with a status that clients retry
    refusing = asyncio.create_task(server.stop(grace_s + 2 * _LAST_REPLIES_S))
    try:
        await asyncio.wait_for(service.idle(), grace_s)
    except TimeoutError:
        _LOG.warning("after %g s requests still run: they get UNAVAILABLE", grace_s)
        await service.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(service.idle(), _LAST_REPLIES_S)
    await server.stop(_LAST_REPLIES_S)
    await refusing


async def _until_quiet(service: RewardService) -> None:
    """Wait until no call arrives for 50 ms, and at most 0.5 s.

    A gRPC server that stops ends the calls that it has received but not yet handed to Python with
    CANCELLED, which only kwise's own clients retry.
    """
    for _ in range(10):
        num_calls = service.num_calls
        await asyncio.sleep(0.05)
        if service.num_calls == num_calls:
            return


def _add_services(server: grpc.aio.Server, service: RewardService) -> health.HealthServicer:
    """Add the reward service, health and reflection to the server. Return the health service."""
    reward_pb2_grpc.add_RewardServiceServicer_to_server(GrpcRewardService(service), server)
    health_service = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    names = (_SERVICE, health_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return health_service


def _handle_signals(reloader: Reloader) -> asyncio.Event:
    """Reload at SIGHUP. Return an event that SIGTERM and SIGINT set."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping
