"""The server process: bind the ports, load the model, serve, and shut down in order.

A port is bound before the model is loaded, so that a port that is taken is reported at once. Calls
that arrive meanwhile wait. The health services say that the server serves only while requests are
answered.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress

from kwise.engine.config import EngineConfig
from kwise.engine.server.base_service import RequestLimits
from kwise.engine.server.config import HTTP_OPTIONS, ServerConfig
from kwise.engine.server.grpc.port import GrpcPort
from kwise.engine.server.logs.call_log import CallLog
from kwise.engine.server.models.ensembles import check_members
from kwise.engine.server.models.garbage import freeze_heap
from kwise.engine.server.models.loader import Loader, by_name
from kwise.engine.server.models.source import EnsembleSource, Source, parse_ensembles
from kwise.engine.server.port import Port
from kwise.engine.server.security.credentials import Credentials
from kwise.engine.server.security.exposure import check_exposure, exposed_address
from kwise.engine.server.service import RewardService
from kwise.engine.server.systemd import (
    http_sockets,
    notify_ready,
    notify_reloading,
    notify_stopping,
)
from kwise.engine.server.tracing.exporter import Tracing
from kwise.errors import ConfigError, InvalidRequest
from kwise.options import flag_of

_LOG = logging.getLogger(__name__)

# The time that clients get to receive a reply that has been sent.
_LAST_REPLIES_S = 1.0


async def serve(sources: Sequence[Source], engine: EngineConfig, config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, and reload the artifacts that have changed at SIGHUP.

    At the end, new requests are refused, and running ones get `grace_s` seconds to finish. Requests
    that still wait then get UNAVAILABLE.

    Raises:
        ArtifactError: an artifact is damaged or fails its golden check.
        ConfigError: a port is taken, or an option does not suit an artifact or the address.
    """
    ensembles = _ensembles(config, sources)
    inherited = http_sockets(config)
    check_exposure(config, inherited)
    credentials = Credentials(config)
    tracing = Tracing(config.otlp_endpoint)
    loader = Loader(engine)
    ports = _bind_ports(config, credentials, loader, inherited)
    limits = RequestLimits(
        max_responses=config.max_responses,
        max_pairs=config.max_pairs,
        max_calls_per_client=config.max_calls_per_client,
    )
    service = RewardService(loader.load(sources), limits)
    call_log = CallLog(config.slow_call_s)
    service.observers.append(call_log)
    tracing.observe(service.observers)
    freeze_heap()
    try:
        for ensemble in ensembles:
            await _add(loader, service, ensemble)
        asked = asyncio.Event()
        reloading = asyncio.create_task(_reload(loader, service, asked), name="kwise reload")
        watching = asyncio.create_task(credentials.watch(), name="kwise credentials")
        stopping = _handle_signals(asked)
        for port in ports:
            await port.start(service)
        _log_credentials(config, credentials, inherited)
        for port in ports[1:]:
            _LOG.info("serving on %s", port.address)
        # Programs wait for this line, so it comes last.
        _LOG.info("serving %s on %s", service.description, ports[0].address)
        notify_ready(f"serving {service.description}")
        await stopping.wait()
        notify_stopping()
        _LOG.info("draining: running requests get %g s to finish", config.grace_s)
        reloading.cancel()
        watching.cancel()
        await _drain(ports, service, config.grace_s)
    finally:
        await service.stop()
        call_log.close()
        await tracing.close()
    _LOG.info("stopped")


def _ensembles(config: ServerConfig, sources: Sequence[Source]) -> list[EnsembleSource]:
    """Return the ensembles of the options. They are checked before an artifact is loaded.

    Raises:
        ConfigError: a member is not served or is an ensemble, or a name is taken.
    """
    ensembles = parse_ensembles(config.ensemble)
    served = dict.fromkeys(by_name(sources), False) if ensembles else {}
    for ensemble in ensembles:
        try:
            check_members(ensemble, served)
        except InvalidRequest as error:
            raise ConfigError(f"--ensemble {ensemble.name}: {error}") from None
        served[ensemble.name] = True
    return ensembles


async def _add(loader: Loader, service: RewardService, ensemble: EnsembleSource) -> None:
    """Add an ensemble that an option asks for.

    Raises:
        ConfigError: its members are not served, or cannot be combined.
    """
    try:
        await loader.combine(service, ensemble)
    except InvalidRequest as error:
        raise ConfigError(f"--ensemble {ensemble.name}: {error}") from None


def _bind_ports(
    config: ServerConfig,
    credentials: Credentials,
    loader: Loader,
    inherited: Sequence[socket.socket],
) -> list[Port]:
    """Return the ports that the options ask for, and the HTTP port of inherited sockets.

    Raises:
        ConfigError: a port is taken, or an option is for HTTP and there is no HTTP port.
    """
    ports: list[Port] = []
    if config.http_port is None and not inherited:
        for name, default in HTTP_OPTIONS.items():
            if getattr(config, name) != default:
                problem = "is for HTTP; give --http-port too, or leave it out"
                raise ConfigError(f"{flag_of(name)} {problem}")
    else:
        # Imported late: a server without the option does not load the packages.
        from kwise.engine.server.http.port import HttpPort

        ports.append(HttpPort(config, credentials, inherited))
        _LOG.info("listening on %s; calls wait until the model is loaded", ports[0].address)
    return [GrpcPort(config, credentials, loader), *ports]


def _log_credentials(
    config: ServerConfig, credentials: Credentials, inherited: Sequence[socket.socket]
) -> None:
    """Say how callers are known, and warn if texts and tokens can be read on their way."""
    if credentials.needs_token or credentials.has_admins or credentials.tls is not None:
        _LOG.info("connections: %s", credentials.description)
    address = exposed_address(config, inherited)
    if credentials.tls is None and address is not None:
        _LOG.warning(
            "%s without --tls-cert: texts%s cross the network unencrypted",
            address,
            " and tokens" if credentials.needs_token or credentials.has_admins else "",
        )


async def _drain(ports: Sequence[Port], service: RewardService, grace_s: float) -> None:
    """Answer or refuse all calls, then close the ports.

    This waits for calls of the reward service only. Others, such as a watch of the health service,
    may never end.
    """
    for port in ports:
        await port.announce_drain()
    await _until_quiet(service)  # calls sent before the signal are served
    service.drain()
    await _until_quiet(service)  # calls sent after it are refused with a status that clients retry
    for port in ports:
        port.stop_accepting(grace_s + 2 * _LAST_REPLIES_S)
    try:
        await asyncio.wait_for(service.idle(), grace_s)
    except TimeoutError:
        _LOG.warning("after %g s requests still run: they get UNAVAILABLE", grace_s)
        await service.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(service.idle(), _LAST_REPLIES_S)
    await asyncio.gather(*(port.close(_LAST_REPLIES_S) for port in ports))


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


async def _reload(loader: Loader, service: RewardService, asked: asyncio.Event) -> None:
    """Reload each time that `asked` is set, for ever."""
    while True:
        await asked.wait()
        asked.clear()
        notify_reloading()
        await loader.reload(service)
        notify_ready(f"serving {service.description}")


def _handle_signals(asked: asyncio.Event) -> asyncio.Event:
    """Set `asked` at SIGHUP. Return an event that SIGTERM and SIGINT set."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping
