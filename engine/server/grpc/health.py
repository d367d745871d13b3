"""The standard health service. Anybody may ask it, without a token.

The servicer of `grpcio-health-checking` is not used. There, a watch that ends keeps all other
watches of its service from changes, and one whose client does not read holds a lock, for which
other watches and the server's shutdown wait. Here, each watch has an event of its own.
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kwise.engine.server.grpc.calls import Context
from kwise.engine.server.grpc.malformed import malformed

# Each load balancer and each client with a health check has one watch. A watch takes 20 KB.
MAX_WATCHES = 1000
# A watch keeps the name of its service in memory. Names of models have 100 characters at most.
MAX_NAME_CHARACTERS = 1000

_METHODS: Any = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name
_Response = health_pb2.HealthCheckResponse


class LimitedHealthServicer(health_pb2_grpc.HealthServicer):
    """Reports the health of services and models by their names.

    A watch is refused while `MAX_WATCHES` others are open. `Check` is answered always.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._watches: dict[str, set[asyncio.Event]] = {}
        self._is_final = False
        self._num_watches = 0

    def set(self, name: str, status: int | None) -> None:
        """Set the health of a service and tell its watches; None if the service was removed.

        This does nothing once the server shuts down.
        """
        if self._is_final:
            return
        if status is None:
            self._statuses.pop(name, None)
        else:
            self._statuses[name] = status
        for changed in self._watches.get(name, ()):
            changed.set()

    def shut_down(self) -> None:
        """Report NOT_SERVING for everything from now on."""
        for name in list(self._statuses):
            self.set(name, _Response.NOT_SERVING)
        self._is_final = True

    async def Check(
        self, request: health_pb2.HealthCheckRequest | None, context: Context
    ) -> object:
        """Return the health of a service. NOT_FOUND if nothing has that name."""
        name = await _name_of(request, "Check", context)
        if (status := self._statuses.get(name)) is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service or model has this name")
        return _Response(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest | None, context: Context) -> None:
        """Send the health of a service, and each change of it."""
        name = await _name_of(request, "Watch", context)
        if self._num_watches >= MAX_WATCHES:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_WATCHES} watches are open, the limit of this server; call Check instead",
                (("grpc-retry-pushback-ms", "10000"),),
            )
        changed = asyncio.Event()
        self._num_watches += 1
        self._watches.setdefault(name, set()).add(changed)
        try:
            await self._report(name, changed, context)
        finally:
            self._num_watches -= 1
            self._watches[name].discard(changed)
            if not self._watches[name]:
                del self._watches[name]

    async def _report(self, name: str, changed: asyncio.Event, context: Context) -> None:
        sent: int | None = None
        while True:
            changed.clear()
            # A client that reads slowly misses states between two that it gets.
            status = self._statuses.get(name, _Response.SERVICE_UNKNOWN)
            if status != sent:
                await context.write(_Response(status=status))
                sent = status
            await changed.wait()


async def _name_of(
    request: health_pb2.HealthCheckRequest | None, method: str, context: Context
) -> str:
    """Return the name that a request asks about, or refuse the call."""
    problem = ""
    if request is None:
        problem = malformed(_METHODS[method])
    elif len(request.service) > MAX_NAME_CHARACTERS:
        problem = (
            f"service: it has {len(request.service)} characters; the limit is {MAX_NAME_CHARACTERS}"
        )
    if problem:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
    assert request is not None
    return request.service
