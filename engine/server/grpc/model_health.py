"""The health of each model by its name, in the standard health service.

A load balancer that sends requests for one model can watch that model alone.
"""

import asyncio
from collections.abc import Iterable

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from kwise.engine.server.service import RewardService

_Status = health_pb2.HealthCheckResponse


class ModelHealth:
    """Keeps a health servicer informed about the models of a service.

    Args:
        servicer: the health servicer.
        service: its models are SERVING. One that was removed is SERVICE_UNKNOWN.
        reserved: names that are those of gRPC services, whose health is reported in their place.
    """

    def __init__(
        self, servicer: health.HealthServicer, service: RewardService, reserved: Iterable[str]
    ) -> None:
        self._servicer = servicer
        self._service = service
        self._reserved = frozenset(reserved)
        self._known: set[str] = set()
        self._updating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Report the models that are served now, and follow all later changes."""
        self._service.on_change(self._update_soon)
        await self._update()

    def _update_soon(self) -> None:
        if self._updating is None or self._updating.done():
            self._updating = asyncio.create_task(self._update(), name="kwise health")

    async def _update(self) -> None:
        """Set what has changed. The last step finds no difference, so no change is missed."""
        while (served := set(self._service.models) - self._reserved) != self._known:
            for name in served - self._known:
                await self._servicer.set(name, _Status.SERVING)
            for name in self._known - served:
                await self._servicer.set(name, _Status.SERVICE_UNKNOWN)
            self._known = served
