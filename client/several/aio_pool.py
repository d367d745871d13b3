"""The channels of the asyncio client to its servers, and the tasks that ask them.

The asyncio form of pool.py, which explains it.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import grpc

from kwise.client import messages
from kwise.client.channel import channel_options
from kwise.client.credentials import Credentials
from kwise.client.errors import RewardServiceError
from kwise.client.several.asking import (
    HEALTH_METHOD,
    HEALTH_REQUEST,
    health_problem,
    is_without_health,
)
from kwise.client.several.pool import Metadata
from kwise.client.several.servers import ASK_TIMEOUT_S, Servers
from kwise.client.several.targets import to_targets
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc


class AsyncLink:
    """A channel to one server. `wait_for_ready` is that of `Link`."""

    def __init__(
        self, address: str, *, authority: str, tls: grpc.ChannelCredentials | None, is_alone: bool
    ) -> None:
        self.address = address
        options = channel_options(authority)
        self.channel = (
            grpc.aio.insecure_channel(address, options=options)
            if tls is None
            else grpc.aio.secure_channel(address, tls, options=options)
        )
        self.stub: Any = reward_pb2_grpc.RewardServiceStub(self.channel)
        self.wait_for_ready = None if is_alone else False


class AsyncPool:
    """The links of one client, on one event loop. Arguments and methods are those of `Pool`.

    Attributes:
        changed: set once a server was asked or a name looked up. A new event takes its place then.
    """

    def __init__(
        self, servers: Servers, model: str, metadata: Metadata, credentials: Credentials
    ) -> None:
        self.servers = servers
        self._model = model
        self._metadata = metadata
        self._tls = credentials.channel_credentials()
        self._links: dict[str, AsyncLink] = {}
        self._gone: list[AsyncLink] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        self._is_closed = False
        if servers.alone is not None:
            self.link(servers.alone)

    def link(self, address: str) -> AsyncLink:
        if address not in self._links:
            is_alone = self.servers.alone is not None
            self._links[address] = AsyncLink(
                address,
                authority=self.servers.authority_of(address),
                tls=self._tls,
                is_alone=is_alone,
            )
        return self._links[address]

    async def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.changed.set()
        for link in [*self._links.values(), *self._gone]:
            await link.channel.close()

    # Waiting

    async def connect(self, timeout_s: float) -> None:
        if (address := self.servers.alone) is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.link(address).channel.channel_ready()
            except TimeoutError:
                await self._probe(self.link(address), timeout_s)
            return
        await self._wait(lambda: self.servers.is_known or None, timeout_s, or_any=True)
        self.servers.settle()

    async def _probe(self, link: AsyncLink, waited_s: float) -> None:
        try:
            await link.stub.GetModel(
                pb.GetModelRequest(),
                timeout=messages.PROBE_S,
                metadata=self._metadata,
                wait_for_ready=False,
            )
        except grpc.RpcError as error:
            raise messages.no_server(link.address, waited_s, error) from None

    async def pick(self, key: bytes, timeout_s: float) -> AsyncLink:
        if (address := self.servers.alone) is not None:
            return self._links[address]
        self.tend()
        if (address := self.servers.pick(key)) is None:
            address = await self._wait(lambda: self.servers.pick(key), timeout_s)
        return self.link(address)

    async def _wait(
        self, state: Callable[[], Any], timeout_s: float, *, or_any: bool = False
    ) -> Any:
        ends_at = monotonic() + timeout_s
        while True:
            self.tend()
            if self._is_closed:
                raise ValueError("the client is closed")
            if (value := state()) is not None:
                return value
            if (refusal := self.servers.refusal) is not None:
                raise refusal
            left_s = ends_at - monotonic()
            if left_s <= 0:
                if or_any and self.servers.usable:
                    return None
                raise self.servers.none_up(timeout_s)
            next_s = self.servers.next_s
            try:
                async with asyncio.timeout(left_s if next_s is None else min(left_s, next_s)):
                    await self.changed.wait()
            except TimeoutError:
                pass

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    # Asking

    def tend(self) -> None:
        if self.servers.next_s != 0.0 or self._is_closed:
            return
        for address in self.servers.to_ask():
            self._start(self._ask(address))
        for target, host, port in self.servers.to_look_up():
            self._start(self._look_up(target, host, port))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, address: str) -> None:
        failure, fingerprint = await self._answer(self.link(address))
        self.servers.asked(address, failure, fingerprint)
        self._notify()

    async def _answer(self, link: AsyncLink) -> tuple[RewardServiceError | None, str]:
        check: Any = link.channel.unary_unary(HEALTH_METHOD)
        options: dict[str, Any] = {"timeout": ASK_TIMEOUT_S, "wait_for_ready": False}
        try:
            reply = await check(HEALTH_REQUEST, **options)
            failure = health_problem(reply, link.address)
        except grpc.RpcError as error:
            failure = messages.from_rpc_error(error, link.address)
        if failure is not None and not is_without_health(failure):
            return failure, ""
        try:
            request = pb.GetModelRequest(model=self._model)
            model = await link.stub.GetModel(request, metadata=self._metadata, **options)
        except grpc.RpcError as error:
            return messages.from_rpc_error(error, link.address), ""
        return None, model.fingerprint

    async def _look_up(self, target: str, host: str, port: str) -> None:
        found: tuple[str, ...] = ()
        cause = ""
        try:
            loop = asyncio.get_running_loop()
            found = to_targets(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # UnicodeError: not a name at all
            cause = getattr(error, "strerror", None) or str(error)
        gone = self.servers.found(target, found, cause)
        # Calls that run at a server that is gone have until the next look-up to finish.
        closed, self._gone = self._gone, [self._links.pop(a) for a in gone if a in self._links]
        for link in closed:
            await link.channel.close()
        self._notify()
