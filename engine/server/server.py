"""A gRPC server around one scorer: reward service, health, reflection, and an orderly end.

The port is bound before the model is loaded, so that a taken port is reported at once; calls that arrive meanwhile wait in
the connection's handshake. Health says SERVING only while requests are answered.
"""

import asyncio
import logging
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.server.reload import Reloader
from kwise.engine.server.service import RewardService
from kwise.errors import ConfigError
from kwise.options import check_bounds, option
from kwise.protos.kwise.v1 import reward_pb2, reward_pb2_grpc

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the server listens and how it ends. Raises ConfigError, naming the option and its bound."""

    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0 for every network this machine is on"
    )
    port: int = option(
        50051, "TCP port; 0 takes a free one and prints it", minimum=0, maximum=65535
    )
    max_message_bytes: int = option(
        64 << 20, "largest request and reply", minimum=1 << 10, maximum=(1 << 31) - 1
    )
    grace_s: float = option(
        30.0, "seconds that running requests get to finish after SIGTERM", minimum=0
    )

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def grpc_options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            (
                "grpc.so_reuseport",
                0,
            ),  # a second server on the port must fail, not take half of the calls
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A client whose machine has gone without a word is noticed in 80 s, and what it waited for leaves the queue.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]


async def serve(artifact: Path, engine: EngineConfig, config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, reloading the artifact at SIGHUP. Then drain: refuse what is new, finish what runs, at
    most `grace_s` long; what is left then gets UNAVAILABLE.

    Raises:
        ArtifactError: the artifact is damaged or fails its golden check.
        ConfigError: the port is taken, or an option does not suit the artifact.
    """
    server = grpc.aio.server(options=config.grpc_options)
    try:
        port = server.add_insecure_port(f"{config.host}:{config.port}")
    except RuntimeError as error:
        raise ConfigError(
            f"--host {config.host} --port {config.port}: cannot listen there: {error}"
        ) from None
    service = RewardService(Scorer.load(artifact, engine))
    service.scorer.start()
    try:
        health_service = _add_services(server, service)
        await health_service.set("", health_pb2.HealthCheckResponse.SERVING)
        await health_service.set(_SERVICE, health_pb2.HealthCheckResponse.SERVING)
        reloader = Reloader(service, artifact, engine)
        reloading = asyncio.create_task(reloader.run(), name="kwise reload")
        stopping = _on_signals(reloader)
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


async def _drain(server: grpc.aio.Server, service: RewardService, grace_s: float) -> None:
    """Wait for the service's own calls alone: others, such as a watch of the server's health, may never end."""
    await _until_quiet(service)  # what was sent before the signal is served
    service.drain()
    await _until_quiet(
        service
    )  # what was sent after it is refused with a status that clients retry
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
    """Until no call arrives, or half a second: a server that stops ends with CANCELLED, which only our own clients retry,
    the calls that gRPC has received and not handed over yet."""
    for _ in range(10):
        num_calls = service.num_calls
        await asyncio.sleep(0.05)
        if service.num_calls == num_calls:
            return


# What a client gets to take a reply that is on its way.
_LAST_REPLIES_S = 1.0
_SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name


def _add_services(server: grpc.aio.Server, service: RewardService) -> health.HealthServicer:
    reward_pb2_grpc.add_RewardServiceServicer_to_server(service, server)
    health_service = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    names = (
        _SERVICE,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    reflection.enable_server_reflection(names, server)
    return health_service


def _on_signals(reloader: Reloader) -> asyncio.Event:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.ask)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping
