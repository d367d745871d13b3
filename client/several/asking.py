"""The question to a server whether it serves, as both clients ask it.

A server is asked for its health by gRPC's standard service, because a draining server still answers
GetModel, and then for its model, because a server may come back with another one. The two messages
of the health service are written here as bytes: their Python package would be one more requirement
of the client.

https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto
"""

from kwise.client.errors import RewardServiceError
from kwise.errors import Status

HEALTH_METHOD = "/grpc.health.v1.Health/Check"
_SERVICE = b"kwise.v1.RewardService"
# HealthCheckRequest{service 1} and HealthCheckResponse{status 1: SERVING}
HEALTH_REQUEST = b"\x0a" + bytes([len(_SERVICE)]) + _SERVICE
_SERVING = b"\x08\x01"


def health_problem(reply: bytes, address: str) -> RewardServiceError | None:
    """Return why a server that answered the health check is left out; None if it serves."""
    if reply == _SERVING:
        return None
    return RewardServiceError("UNAVAILABLE", "its health check says that it drains", target=address)


def is_without_health(failure: RewardServiceError) -> bool:
    """Return whether the server has no health service, which is then not asked for."""
    return failure.status is Status.UNIMPLEMENTED
