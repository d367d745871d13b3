"""The gRPC port: all services of `services.py`, the standard health service, and reflection."""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from kwise.engine.server.config import ServerConfig
from kwise.engine.server.grpc.access import TokenInterceptor, server_credentials
from kwise.engine.server.grpc.admin import GrpcAdminService
from kwise.engine.server.grpc.departed_clients import keep_quiet_about_departed_clients
from kwise.engine.server.grpc.health import LimitedHealthServicer
from kwise.engine.server.grpc.malformed import TolerantServer
from kwise.engine.server.grpc.model_health import ModelHealth
from kwise.engine.server.grpc.observed import observed
from kwise.engine.server.grpc.services import ADMIN, HEALTH, SERVICES, descriptor_pool
from kwise.engine.server.listen import bound_sockets, cannot_listen
from kwise.engine.server.models.loader import Loader
from kwise.engine.server.security.credentials import Credentials
from kwise.engine.server.service import RewardService
from kwise.errors import ConfigError
from kwise.protos.kwise.v1 import admin_pb2_grpc


class GrpcPort:
    """A `Port` that speaks gRPC. Calls that arrive before `start` wait in the handshake.

    Args:
        loader: loads models when an administrator asks; None if the models cannot be changed.

    Raises:
        ConfigError: the port cannot be bound.
    """

    def __init__(
        self, config: ServerConfig, credentials: Credentials, loader: Loader | None = None
    ) -> None:
        self._config = config
        self._loader = loader if credentials.has_admins else None
        needs_check = credentials.needs_token or credentials.has_admins
        interceptors = [TokenInterceptor(credentials)] if needs_check else []
        self._server = grpc.aio.server(interceptors=interceptors, options=_options(config))
        self._health = LimitedHealthServicer()
        self._stopping: asyncio.Task[None] | None = None
        tls = server_credentials(credentials)
        address = f"{config.host}:{config.port}"
        try:
            port = (
                self._server.add_insecure_port(address)
                if tls is None
                else self._server.add_secure_port(address, tls)
            )
        except RuntimeError as error:
            problem = _bind_problem(config) or error
            raise ConfigError(cannot_listen(config.host, "--port", config.port, problem)) from None
        self.address = f"{config.host}:{port}"

    async def start(self, service: RewardService) -> None:
        """Answer calls with `service` from now on."""
        keep_quiet_about_departed_clients()
        tolerant: Any = TolerantServer(self._server)
        for entry in SERVICES:
            servicer = entry.servicer(service, self._config)
            entry.add(observed(servicer, entry.descriptor, service), tolerant)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, tolerant)
        served = [entry.descriptor.full_name for entry in SERVICES]
        if self._loader is not None:
            admin = observed(GrpcAdminService(service, self._loader), ADMIN, service)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, tolerant)
            served.append(ADMIN.full_name)
        names = (*served, HEALTH.full_name, reflection.SERVICE_NAME)
        reflected = reflection.aio.ReflectionServicer(names, pool=descriptor_pool())
        add_reflection: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        add_reflection(
            reflected, TolerantServer(self._server, reflection_pb2.ServerReflectionRequest)
        )
        for name in ("", *served):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        ModelHealth(self._health, service, reserved=served).start()
        await self._server.start()

    async def announce_drain(self) -> None:
        """Answer health checks with NOT_SERVING."""
        self._health.shut_down()

    def stop_accepting(self, within_s: float) -> None:
        """Refuse new calls. Those that run may take `within_s` seconds."""
        self._stopping = asyncio.create_task(self._server.stop(within_s))

    async def close(self, within_s: float) -> None:
        """Give clients `within_s` seconds to receive their last replies, and close the port."""
        await self._server.stop(within_s)
        if self._stopping:
            await self._stopping


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # A second server on the port must fail. With this on, it would take half of the calls.
        ("grpc.so_reuseport", 0),
        # A call that waits sends no data. Without this, gRPC ends the connection of a client that
        # pings more than once in 5 minutes ("Too many pings"). Proxies ping every 10 s.
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client whose machine is lost is noticed after 80 s, and its groups leave the queue.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def _bind_problem(config: ServerConfig) -> OSError | None:
    """Return the operating system's error for the port; None if it can be bound.

    gRPC does not report it.
    """
    try:
        for probe in bound_sockets(config.host, config.port):
            probe.close()
    except OSError as error:
        return error
    return None
