"""The circumstances of one request, whatever protocol it came in."""

from dataclasses import dataclass

from kwise.engine.server.service import RewardService


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The circumstances of one request.

    Attributes:
        service: answers it.
        client: who asks, for `Group.client`. It is the name that the request gives, or else the
            address of the connection.
    """

    service: RewardService
    client: str
