"""The standard health service, with a limit on watches, which anybody may open without a token."""

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from kwise.engine.server.grpc.calls import Context

# Each load balancer and each client with a health check has one watch. A watch takes 20 KB.
MAX_WATCHES = 1000


class LimitedHealthServicer(health.HealthServicer):
    """Refuses a watch while `MAX_WATCHES` others are open. `Check` is answered always."""

    def __init__(self) -> None:
        super().__init__()
        self._num_watches = 0

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Send the health of a service, and each change of it."""
        if self._num_watches >= MAX_WATCHES:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_WATCHES} watches are open, the limit of this server; call Check instead",
                (("grpc-retry-pushback-ms", "10000"),),
            )
        self._num_watches += 1
        try:
            await super().Watch(request, context)
        finally:
            self._num_watches -= 1
