"""The context of one request, whatever protocol it came in."""

from dataclasses import dataclass

from kwise.engine.server.service import RewardService


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The context of one request.

    Attributes:
        service: the service that answers it.
        client: the client that asks, for `Group.client`: the name in the request, or else the
            address of the connection.
    """

    service: RewardService
    client: str
