"""The interface of a server's ports, whatever protocol they speak."""

from typing import Protocol

from kwise.engine.server.service import RewardService


class Port(Protocol):
    """A listening port of one protocol. It is bound when it is made, before the model is loaded.

    Attributes:
        address: the address that clients connect to, for the log.
    """

    address: str

    async def start(self, service: RewardService) -> None:
        """Answer requests with `service` from now on."""

    async def announce_drain(self) -> None:
        """Tell health checks that the server shuts down. Requests are still answered."""

    def stop_accepting(self, within_s: float) -> None:
        """Accept no new connection or call. What runs may take `within_s` seconds; do not wait."""

    async def close(self, within_s: float) -> None:
        """Give clients `within_s` seconds to receive their last replies, and close the port."""
