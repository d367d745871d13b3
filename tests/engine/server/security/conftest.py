"""Certificates, and servers that ask for tokens and certificates."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from kwise.client import Credentials
from tests.certificates import Authority, Pair
from tests.http_client import http_port
from tests.servers import Server, running_server

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
TOKENS = f"# the callers\n\nalice:{ALICE}\nbob:{BOB}\n"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def server_pair(authority: Authority) -> Pair:
    return authority.sign("server")


@pytest.fixture(scope="session")
def client_pair(authority: Authority) -> Pair:
    return authority.sign("client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    """A running server, the port of its HTTP port, and the file of its tokens."""

    server: Server
    port: int
    token_file: Path


@pytest.fixture(scope="session")
def token_server(
    tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    """A server without TLS that asks for the tokens in `TOKENS`. Tests may make it refuse calls."""
    token_file = tmp_path_factory.mktemp("tokens") / "tokens"
    token_file.write_text(TOKENS)
    options = ("--http-port", "0", "--token-file", str(token_file))
    with running_server(tiny_artifact, *options) as server:
        yield Secured(server=server, port=http_port(server), token_file=token_file)
        assert server.process.poll() is None
        assert "Traceback" not in server.log.text
        assert ALICE not in server.log.text and BOB not in server.log.text


@pytest.fixture(scope="session")
def tls_server(
    tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory, server_pair: Pair
) -> Iterator[Secured]:
    """A server with TLS that asks for the tokens in `TOKENS`."""
    token_file = tmp_path_factory.mktemp("tokens") / "tokens"
    token_file.write_text(TOKENS)
    options = ["--http-port", "0", "--token-file", str(token_file)]
    options += ["--tls-cert", str(server_pair.cert), "--tls-key", str(server_pair.key)]
    with running_server(tiny_artifact, *options) as server:
        yield Secured(server=server, port=http_port(server), token_file=token_file)
        assert server.process.poll() is None
        assert "Traceback" not in server.log.text


def credentials_of(ca: Path | None, pair: Pair | None = None, token: str = "") -> Credentials:
    """Return the credentials of a client."""
    return Credentials(
        token=token,
        tls_ca="" if ca is None else str(ca),
        tls_cert="" if pair is None else str(pair.cert),
        tls_key="" if pair is None else str(pair.key),
    )


def client_context(ca: Path, pair: Pair | None = None) -> ssl.SSLContext:
    """Return a context of Python's ssl module for a client."""
    context = ssl.create_default_context(cafile=ca)
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    return context


def status_of(call: Any, *arguments: Any, **keywords: Any) -> grpc.StatusCode:
    """Return the status of a gRPC call."""
    try:
        call(*arguments, **keywords)
    except grpc.RpcError as error:
        status: grpc.StatusCode = error.code()
        return status
    return grpc.StatusCode.OK
