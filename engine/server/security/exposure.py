"""Refuse an address that other machines reach, unless the server knows who may call."""

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from kwise.engine.server.config import ServerConfig
from kwise.engine.server.listen import cannot_listen
from kwise.errors import ConfigError


def check_exposure(config: ServerConfig, inherited: Sequence[socket.socket] = ()) -> None:
    """Check that the server does not answer everybody, unless --insecure allows it.

    Args:
        inherited: the listening sockets that systemd passes.

    Raises:
        ConfigError: an address is not one of this machine alone, and neither tokens nor client
            certificates are needed; or `host` cannot be resolved.
    """
    if config.insecure or config.token_file is not None or config.tls_client_ca is not None:
        return
    if address := exposed_address(config, inherited):
        raise ConfigError(
            f"{address} lets other machines call, and nothing says who may: give "
            "--token-file with --tls-cert and --tls-key, or --tls-client-ca; or give --insecure, "
            "if everybody who reaches the address may call"
        )


def exposed_address(config: ServerConfig, inherited: Sequence[socket.socket] = ()) -> str | None:
    """Return what makes other machines reach the server: an option or a socket; None if nothing.

    Raises:
        ConfigError: `host` cannot be resolved.
    """
    if not _is_loopback(config.host, config.port):
        return f"--host {config.host!r}"
    for passed in inherited:
        host, port = passed.getsockname()[:2]
        if not _is_loopback(host, port):
            return f"the socket {host}:{port} that systemd passes"
    return None


def _is_loopback(host: str, port: int) -> bool:
    """Return whether each address that `host` stands for is one of this machine alone.

    Raises:
        ConfigError: `host` cannot be resolved.
    """
    if not host:
        return False  # for gRPC, all networks
    try:
        resolved = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(cannot_listen(host, "--port", port, error)) from None
    # A link-local IPv6 address has its interface after "%".
    return all(ip_address(str(a[4][0]).partition("%")[0]).is_loopback for a in resolved)
