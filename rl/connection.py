"""The clients of one or several servers, one for each process and event loop that uses them.

RL libraries pickle reward functions, fork and spawn workers, call from several threads, and run a
new event loop at each step. A gRPC channel survives none of this, so a connection holds an address
and opens a client when it is used. A forked process opens its own clients. It does not touch its
parent's, because closing those can hang.

An asyncio client is closed as soon as no call uses it. Otherwise each event loop would leave one
behind, and its thread, which waits in gRPC, would keep gRPC from working in forked processes.
"""

import os
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from kwise.client import AsyncRewardClient, Credentials, RewardClient
from kwise.client.channel import (
    DEFAULT_CONNECT_TIMEOUT_S,
    DEFAULT_TIMEOUT_S,
    check_timeout,
    client_metadata,
)
from kwise.client.several.servers import Servers
from kwise.client.several.targets import TargetLike, check_targets
from kwise.errors import InvalidRequest

ADDRESS_VARIABLE = "KWISE_ADDRESS"


@dataclass(slots=True)
class _Shared:
    """The client of an event loop, and the number of calls that use it now."""

    client: AsyncRewardClient
    num_calls: int = 0


@dataclass(slots=True)
class _Clients:
    """The clients of one process.

    Attributes:
        lock: guards `blocking`.
        blocking: the client that all threads share.
        by_loop: the client of each event loop; only code on that loop changes its entry.
        has_reached: an asyncio client has reached the server.
        max_responses: the server's limit for a request; None if it must be asked.
        servers: what the last asyncio client knew of the servers, for the next one.
    """

    lock: Lock = field(default_factory=Lock)
    blocking: RewardClient | None = None
    by_loop: dict[AbstractEventLoop, _Shared] = field(default_factory=dict)
    has_reached: bool = False
    max_responses: int | None = None
    servers: Servers | None = None


class Connection:
    """A connection to one or several servers.

    It can be pickled, and shared by threads and event loops.

    Args:
        address: the server, or several, as `target` of `RewardClient`; None for the environment
            variable KWISE_ADDRESS, which is read when the connection is first used.
        timeout_s, connect_timeout_s, model, client, credentials: as in `RewardClient`.

    Raises:
        InvalidRequest: `address` is not a valid address.
        TypeError, ValueError: another argument has a wrong type or value.
    """

    def __init__(
        self,
        address: TargetLike | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        model: str = "",
        client: str = "",
        credentials: Credentials | None = None,
    ) -> None:
        client_metadata(client)
        self._targets = None if address is None else check_targets("address", address)
        self._options: dict[str, Any] = {
            "timeout_s": check_timeout("timeout_s", timeout_s),
            "connect_timeout_s": check_timeout("connect_timeout_s", connect_timeout_s),
            "model": model,
            "client": client,
            "credentials": credentials,
        }
        self._by_process: dict[int, _Clients] = {}

    @property
    def targets(self) -> tuple[str, ...]:
        """The servers' addresses.

        Raises:
            InvalidRequest: neither the argument nor the environment variable has one.
        """
        if self._targets is not None:
            return self._targets
        if address := os.environ.get(ADDRESS_VARIABLE):
            return check_targets(ADDRESS_VARIABLE, address)
        raise InvalidRequest(
            "address",
            "no kwise server is named; give the address HOST:PORT as an argument, or set the "
            f"environment variable {ADDRESS_VARIABLE}",
        )

    @property
    def address(self) -> str:
        """The servers' addresses, for messages."""
        return ", ".join(self.targets)

    def blocking(self) -> RewardClient:
        """Return the blocking client of this process."""
        clients = self._clients()
        with clients.lock:
            if clients.blocking is None:
                clients.blocking = RewardClient(self.targets, **self._options)
            return clients.blocking

    @asynccontextmanager
    async def of_running_loop(self) -> AsyncIterator[AsyncRewardClient]:
        """Open the client of the running event loop, which calls at the same time share."""
        loop, clients = get_running_loop(), self._clients()
        for closed in [other for other in clients.by_loop if other.is_closed()]:
            del clients.by_loop[closed]  # this loop ended in the middle of a call
        if loop not in clients.by_loop:
            options = self._options
            if clients.has_reached:  # if the server restarts, calls wait for it until they time out
                options = {**options, "connect_timeout_s": options["timeout_s"]}
            known, targets = clients.servers, self.targets
            servers = known.copy() if known and known.targets == targets else Servers(targets)
            clients.by_loop[loop] = _Shared(AsyncRewardClient(servers, **options))
        shared = clients.by_loop[loop]
        shared.num_calls += 1
        try:
            yield shared.client
            clients.has_reached = True
        finally:
            shared.num_calls -= 1
            if not shared.num_calls:
                clients.servers = shared.client.servers
                del clients.by_loop[loop]
                await shared.client.close()

    @property
    def max_responses(self) -> int | None:
        """The most responses of a request, as the server said; None if it must be asked.

        Only `Scoring` sets it. It is kept, because the question costs a round trip.
        """
        return self._clients().max_responses

    @max_responses.setter
    def max_responses(self, limit: int | None) -> None:
        self._clients().max_responses = limit

    def _clients(self) -> _Clients:
        # setdefault is atomic, so it needs no lock. A lock that another thread holds during a fork
        # would stay locked in the new process, so each process has locks of its own.
        return self._by_process.setdefault(os.getpid(), _Clients())

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without clients, which belong to this process."""
        return {"_targets": self._targets, "_options": self._options, "_by_process": {}}
