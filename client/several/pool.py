"""The channels of the blocking client to its servers, and the threads that ask them.

`Servers` decides, and this class does what it says. A thread lives while a server is asked or a
name is looked up, and no longer: a client whose servers are all up has none.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread
from time import monotonic
from typing import Any

import grpc

from kwise.client import messages
from kwise.client.credentials import Credentials
from kwise.client.errors import RewardServiceError
from kwise.client.open_channel import open_channel
from kwise.client.several.asking import (
    HEALTH_METHOD,
    HEALTH_REQUEST,
    health_problem,
    is_without_health,
)
from kwise.client.several.servers import ASK_TIMEOUT_S, Servers
from kwise.client.several.targets import to_targets
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc

Metadata = tuple[tuple[str, str], ...]


class Link:
    """A channel to one server.

    Args:
        address: the server.
        authority: see `channel_options`.
        tls: None for a connection without TLS.
        is_alone: the client has no other server.

    Attributes:
        wait_for_ready: None to wait for a server that is away, as the channel's service config
            says; False to fail at once, so that another server is asked.
    """

    def __init__(
        self, address: str, *, authority: str, tls: grpc.ChannelCredentials | None, is_alone: bool
    ) -> None:
        self.address = address
        self.channel = open_channel(address, tls, authority)
        self.stub: Any = reward_pb2_grpc.RewardServiceStub(self.channel)
        self.wait_for_ready = None if is_alone else False


class Pool:
    """The links of one client. It can be shared between threads.

    Args:
        servers: what is known of the servers.
        model, metadata: what the client sends with each call.
        credentials: the certificates; the metadata has the token.
    """

    def __init__(
        self, servers: Servers, model: str, metadata: Metadata, credentials: Credentials
    ) -> None:
        self.servers = servers
        self._model = model
        self._metadata = metadata
        self._tls = credentials.channel_credentials()
        self._links: dict[str, Link] = {}
        self._gone: list[Link] = []
        self._changed = Condition()
        self._listeners: list[Callable[[], None]] = []
        self._is_closed = False
        if servers.alone is not None:
            self.link(servers.alone)

    def link(self, address: str) -> Link:
        """Return the link to a server; open it if there is none."""
        with self._changed:
            if address not in self._links:
                is_alone = self.servers.alone is not None
                self._links[address] = Link(
                    address,
                    authority=self.servers.authority_of(address),
                    tls=self._tls,
                    is_alone=is_alone,
                )
                if self._is_closed:
                    self._links[address].channel.close()
            return self._links[address]

    def close(self) -> None:
        """Close all channels. Calls that run end."""
        with self._changed:
            self._is_closed = True
            links = [*self._links.values(), *self._gone]
            self._changed.notify_all()
        for link in links:
            link.channel.close()

    # Waiting

    def connect(self, timeout_s: float) -> None:
        """Wait until a server is up, and all servers have been asked.

        Raises:
            RewardServiceError: none was up within `timeout_s` seconds (UNAVAILABLE), or they serve
                different models (FAILED_PRECONDITION).
        """
        if (address := self.servers.alone) is not None:
            ready = grpc.channel_ready_future(self.link(address).channel)
            try:
                ready.result(timeout=timeout_s)
            except grpc.FutureTimeoutError:
                ready.cancel()
                self._probe(self.link(address), timeout_s)
            return
        self._wait(lambda: self.servers.is_known or None, timeout_s, or_any=True)
        self.servers.settle()

    def _probe(self, link: Link, waited_s: float) -> None:
        """Raise the error of a server that is not ready, with its cause, unless it is ready now."""
        try:
            link.stub.GetModel(
                pb.GetModelRequest(),
                timeout=messages.PROBE_S,
                metadata=self._metadata,
                wait_for_ready=False,
            )
        except grpc.RpcError as error:
            raise messages.no_server(link.address, waited_s, error) from None

    def pick(self, key: bytes, timeout_s: float) -> Link:
        """Return the link to the server of a prompt; wait while no server is up.

        Raises:
            RewardServiceError: none was up within `timeout_s` seconds (UNAVAILABLE).
        """
        if (address := self.servers.alone) is not None:
            return self._links[address]
        self.tend()
        if (address := self.servers.pick(key)) is None:
            address = self._wait(lambda: self.servers.pick(key), timeout_s)
        return self.link(address)

    def _wait(self, state: Callable[[], Any], timeout_s: float, *, or_any: bool = False) -> Any:
        """Wait until `state()` is not None, and return it.

        Args:
            or_any: one server that is up is enough at the end of the time.
        """
        ends_at = monotonic() + timeout_s
        while True:
            self.tend()
            with self._changed:
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
                self._changed.wait(left_s if next_s is None else min(left_s, next_s))

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener`, in another thread, whenever a server was asked or a name looked up."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for listener in list(self._listeners):
            listener()

    # Asking

    def tend(self) -> None:
        """Start to ask the servers, and to look up the names, that are due."""
        if self.servers.next_s != 0.0 or self._is_closed:
            return
        for address in self.servers.to_ask():
            self._start(self._ask, address)
        for target, host, port in self.servers.to_look_up():
            self._start(self._look_up, target, host, port)

    def _start(self, work: Callable[..., None], *arguments: str) -> None:
        Thread(target=work, args=arguments, name="kwise-servers", daemon=True).start()

    def _ask(self, address: str) -> None:
        try:
            failure, fingerprint = self._answer(self.link(address))
        except ValueError:  # the channel was closed
            return
        self.servers.asked(address, failure, fingerprint)
        self._notify()

    def _answer(self, link: Link) -> tuple[RewardServiceError | None, str]:
        """Return why a server does not serve, or None and the fingerprint of its model."""
        check: Any = link.channel.unary_unary(HEALTH_METHOD)
        options: dict[str, Any] = {"timeout": ASK_TIMEOUT_S, "wait_for_ready": False}
        try:
            reply = check(HEALTH_REQUEST, **options)
            failure = health_problem(reply, link.address)
        except grpc.RpcError as error:
            failure = messages.from_rpc_error(error, link.address)
        if failure is not None and not is_without_health(failure):
            return failure, ""
        try:
            request = pb.GetModelRequest(model=self._model)
            model = link.stub.GetModel(request, metadata=self._metadata, **options)
        except grpc.RpcError as error:
            return messages.from_rpc_error(error, link.address), ""
        return None, model.fingerprint

    def _look_up(self, target: str, host: str, port: str) -> None:
        found: tuple[str, ...] = ()
        cause = ""
        try:
            found = to_targets(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # UnicodeError: not a name at all
            cause = getattr(error, "strerror", None) or str(error)
        gone = self.servers.found(target, found, cause)
        with self._changed:
            # Calls that run at a server that is gone have until the next look-up to finish.
            closed, self._gone = self._gone, [self._links.pop(a) for a in gone if a in self._links]
        for link in closed:
            link.channel.close()
        self._notify()
