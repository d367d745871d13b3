"""The HTTP port: uvicorn's protocol on kwise's own event loop and sockets.

The sockets listen from the moment the port is created, before the model is loaded. Early
connections wait in the kernel's queue, and are answered once the model is loaded. While the server
drains, the sockets keep listening, so that a restart costs a client one of its tries and not all.

uvicorn's own `Server` is not used. It closes the sockets as soon as it stops, handles signals, and
polls ten times a second.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from kwise.engine.server.config import ServerConfig
from kwise.engine.server.http.app import new_app
from kwise.engine.server.http.protocol import LimitedHttpProtocol
from kwise.engine.server.http.table import ENDPOINTS
from kwise.engine.server.listen import bound_sockets, cannot_listen
from kwise.engine.server.security.credentials import Credentials
from kwise.engine.server.service import RewardService
from kwise.errors import ConfigError

# The number of connections that may wait to be accepted. The kernel lowers it to
# net.core.somaxconn.
_BACKLOG = 16384
# Connections that are accepted in one step of the event loop.
_ACCEPTED_AT_ONCE = 128
# The longest time between two requests of a connection. Clients and proxies reuse a connection
# after a minute at most; a request on a connection that the server closes before would be lost.
_KEEP_ALIVE_S = 75


class HttpPort:
    """A `Port` that speaks HTTP.

    Args:
        inherited: the listening sockets that systemd passes, instead of --http-port.

    Raises:
        ConfigError: the port cannot be bound.
    """

    def __init__(
        self,
        config: ServerConfig,
        credentials: Credentials,
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._servers: list[asyncio.Server] = []
        self._state = _State()
        self._stopping: asyncio.Task[None] | None = None
        self._sockets = list(inherited) or _bound(config)
        for listening in self._sockets:
            _notice_lost_machines(listening)
        scheme = "http" if credentials.tls is None else "https"
        host, port = self._sockets[0].getsockname()[:2]
        if not inherited:
            host = config.host
        elif ":" in host:
            host = f"[{host}]"
        self.address = f"{scheme}://{host}:{port}"

    async def start(self, service: RewardService) -> None:
        """Answer requests with `service` from now on."""
        _allow_many_connections()
        max_body_bytes = self._config.max_message_bytes
        app = new_app(ENDPOINTS, service, max_body_bytes, self._credentials)
        config = uvicorn.Config(
            app,
            http=LimitedHttpProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        config.load()

        def connection() -> LimitedHttpProtocol:
            return LimitedHttpProtocol(
                config,
                self._state,
                {},
                receive_s=self._config.http_receive_s,
                max_connections=self._config.max_http_connections,
            )

        loop = asyncio.get_running_loop()
        tls = self._credentials.ssl_context
        # A client that never ends a handshake, or never closes its side, is given up.
        times: dict[str, Any] = {}
        if tls is not None:
            receive_s = self._config.http_receive_s
            times = {"ssl_handshake_timeout": receive_s, "ssl_shutdown_timeout": receive_s}
        for listening in self._sockets:
            # asyncio closes its own socket, the duplicate, when it stops accepting. The original
            # keeps listening.
            self._servers.append(
                await loop.create_server(
                    connection,
                    sock=listening.dup(),
                    backlog=_ACCEPTED_AT_ONCE,
                    ssl=tls,
                    **times,
                )
            )
            listening.listen(_BACKLOG)
        self._stopping = asyncio.create_task(self._stop_when_it_drains(service))

    async def _stop_when_it_drains(self, service: RewardService) -> None:
        """Stop accepting connections once requests are refused.

        Otherwise a client that opens a connection for each try would be refused each time.
        """
        await service.draining.wait()
        self.stop_accepting(0)

    async def announce_drain(self) -> None:
        """Do nothing: the service knows that it drains, and health checks ask it."""

    def stop_accepting(self, within_s: float) -> None:
        """Accept no new connection. New ones wait in the kernel's queue until the process ends."""
        for server in self._servers:
            server.close()

    async def close(self, within_s: float) -> None:
        """Give clients `within_s` seconds to receive their last replies. Close all connections."""
        connections: set[Any] = self._state.connections
        for connection in list(connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while connections:
                    await asyncio.sleep(0.01)
        for connection in list(connections):
            connection.transport.abort()
        for listening in self._sockets:
            # The socket stays open until the process ends, so that a client that connects waits.
            listening.detach()


class _State(ServerState):
    """The state that uvicorn's connections share, with a Date header of the current second."""

    def __init__(self) -> None:
        self._date_of = 0
        self._headers: list[tuple[bytes, bytes]] = []
        super().__init__()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every reply."""
        now = int(time.time())
        if now != self._date_of:
            self._date_of = now
            self._headers = [(b"date", formatdate(now, usegmt=True).encode())]
        return self._headers

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Ignore the empty list that uvicorn sets first."""


def _bound(config: ServerConfig) -> list[socket.socket]:
    """Return sockets that listen on --http-port.

    Raises:
        ConfigError: the port cannot be bound.
    """
    assert config.http_port is not None
    try:
        sockets = bound_sockets(config.host, config.http_port)
        for listening in sockets:
            listening.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            cannot_listen(config.host, "--http-port", config.http_port, error)
        ) from None
    return sockets


def _notice_lost_machines(listening: socket.socket) -> None:
    """Let the kernel close connections of lost machines, after 80 s as on the gRPC port.

    Connections inherit the options of the socket that accepts them.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if (option := getattr(socket, name, None)) is not None:  # macOS lacks the first
            listening.setsockopt(socket.IPPROTO_TCP, option, value)


def _allow_many_connections() -> None:
    """Raise the limit on open files to the maximum that the process may set.

    Each connection is a file, and an RL library may open one per sample of a step at the same time.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
