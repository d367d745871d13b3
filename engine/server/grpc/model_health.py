"""The health of each model by its name, in the standard health service.

A load balancer that sends requests for one model can watch that model alone.
"""

from collections.abc import Iterable

from grpc_health.v1 import health_pb2

from kwise.engine.server.grpc.health import LimitedHealthServicer
from kwise.engine.server.service import RewardService


class ModelHealth:
    """Keeps a health servicer informed about the models of a service.

    Args:
        servicer: the health servicer.
        service: its models are SERVING. Nothing is known of one that was removed.
        reserved: names that are those of gRPC services, whose health is reported in their place.
    """

    def __init__(
        self, servicer: LimitedHealthServicer, service: RewardService, reserved: Iterable[str]
    ) -> None:
        self._servicer = servicer
        self._service = service
        self._reserved = frozenset(reserved)
        self._known: set[str] = set()

    def start(self) -> None:
        """Report the models that are served now, and follow all later changes."""
        self._service.on_change(self._update)
        self._update()

    def _update(self) -> None:
        served = set(self._service.models) - self._reserved
        for name in served - self._known:
            self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        for name in self._known - served:
            self._servicer.set(name, None)
        self._known = served
