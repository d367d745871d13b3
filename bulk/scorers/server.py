"""A scorer that asks a server."""

from collections.abc import Sequence

from kwise.bulk.scorers.protocol import GroupResult, ModelIdentity
from kwise.client.aio import AsyncRewardClient
from kwise.types import Group

# Windows in flight. A window is one stream; a second one fills the server's queue while the last
# groups of the first one are computed.
_MAX_WINDOWS = 2


class ServerScorer:
    """Sends each window to a server on a stream of its own."""

    def __init__(self, client: AsyncRewardClient, identity: ModelIdentity) -> None:
        self._client = client
        self.identity = identity
        self.max_windows = _MAX_WINDOWS

    @classmethod
    async def connect(cls, server: str, *, timeout_s: float, model: str) -> "ServerScorer":
        """Wait for a server and ask for its model.

        Raises:
            RewardServiceError: no server answers, or it serves another model.
        """
        client = AsyncRewardClient(server, timeout_s=timeout_s, model=model)
        try:
            await client.wait_until_ready(min(5.0, timeout_s))
            served = await client.get_model()
        except BaseException:
            await client.close()
            raise
        identity = ModelIdentity(
            model=served.model,
            fingerprint=served.fingerprint,
            precision=served.precision,
            runtime=served.runtime,
        )
        return cls(client, identity)

    async def score(self, groups: Sequence[Group]) -> Sequence[GroupResult]:
        """Return one result per group, in order."""
        results = self._client.score_many(groups)
        return [result async for result in results]

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()
