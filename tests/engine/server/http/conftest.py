"""A server with an HTTP port, which the tests of this folder share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.http_client import HttpReply, ask, http_port
from tests.servers import Server, running_server


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServer:
    """A running server, its HTTP port, and a stub for its gRPC port."""

    server: Server
    port: int
    stub: Any

    def post(self, path: str, body: Any, **headers: str) -> HttpReply:
        return ask(self.port, "POST", path, body, **headers)

    def get(self, path: str) -> HttpReply:
        return ask(self.port, "GET", path)

    def assert_healthy(self) -> None:
        """Assert that the server answers a request as ever."""
        reply = self.post("/v1/rewards", {"prompt": "Are you well?", "responses": ["Yes.", "No."]})
        assert reply.status == 200, reply
        assert len(reply.json["scored"]["rewards"]) == 2


@pytest.fixture(scope="session")
def http(tiny_artifact: Path) -> Iterator[HttpServer]:
    """A server of `tiny_artifact`. Tests may harm it as clients can; it must survive them."""
    options = ("--http-port", "0", "--max-message-bytes", "300000", "--http-receive-s", "1.5")
    with running_server(tiny_artifact, *options) as server, server.stub() as stub:
        yield HttpServer(server=server, port=http_port(server), stub=stub)
        assert server.process.poll() is None
        assert "Traceback" not in server.log.text
