"""A service with both of its ports in the test's own process, whose calls the test observes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from kwise.engine.server.base_service import RequestLimits
from kwise.engine.server.calls.running_call import RunningCall
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.grpc.port import GrpcPort
from kwise.engine.server.http.port import HttpPort
from kwise.engine.server.security.credentials import Credentials
from kwise.engine.server.service import RewardService
from kwise.protos.kwise.v1 import reward_pb2 as pb
from tests.http_client import HttpReply, ask
from tests.servers import PATIENCE_S
from tests.sum_session import SumSession, sum_scorer


@dataclass(slots=True, kw_only=True)
class Observed:
    """A service of the sum model, and the calls to it that have ended."""

    service: RewardService
    session: SumSession
    channel: grpc.aio.Channel
    grpc_address: str
    http_port: int
    calls: list[RunningCall] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> HttpReply:
        return await asyncio.to_thread(ask, self.http_port, method, path, body, **headers)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a state of the service."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def observed_service(config: ServerConfig | None = None, **engine: Any) -> Any:
    """Yield an `Observed` whose ports have the options of `config`."""
    config = config or ServerConfig(port=0, http_port=0)
    credentials, session = Credentials(config), SumSession()
    ports = GrpcPort(config, credentials), HttpPort(config, credentials)
    service = RewardService([sum_scorer(session, **engine)], RequestLimits(max_responses=16))
    service.model().start()
    for port in ports:
        await port.start(service)
    http_port = int(ports[1].address.rpartition(":")[2])
    address = ports[0].address
    async with grpc.aio.insecure_channel(address) as channel:
        observed = Observed(
            service=service,
            session=session,
            channel=channel,
            grpc_address=address,
            http_port=http_port,
        )
        service.observers.append(observed.calls.append)
        try:
            yield observed
        finally:
            session.gate.set()
            service.drain()
            await service.stop()
            for port in ports:
                await port.close(0)
            await service.stop()


@pytest.fixture
async def observed() -> AsyncIterator[Observed]:
    async with observed_service() as service:
        yield service


def group_of(*responses: int) -> pb.Group:
    """Return a group of token ids, which is what the sum model scores."""
    return pb.Group(
        prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[1])),
        responses=[pb.Response(token_ids=pb.TokenIds(ids=[response])) for response in responses],
    )


def body_of(*responses: int) -> dict[str, Any]:
    """Return the group as the body of POST /v1/rewards."""
    return {"prompt": [1], "responses": [[response] for response in responses]}
