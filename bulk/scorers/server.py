"""A scorer that asks a server, or several."""

from collections.abc import Sequence

from kwise.bulk.scorers.protocol import GroupResult, ModelIdentity
from kwise.client.aio import AsyncRewardClient
from kwise.client.errors import RewardServiceError
from kwise.client.several.models import differing_settings
from kwise.client.several.targets import check_targets
from kwise.options import flag_of
from kwise.types import Group, ModelInfo

# The options of a server on which the reward or the error of a conversation depends.
_SERVER_OPTIONS = ("max_tokens", "overlong", "control_tokens")


class ServerScorer:
    """Sends each window in a call of its own.

    One more window is in flight than there are servers. It fills their queues while the last groups
    of the others are computed.
    """

    def __init__(
        self, client: AsyncRewardClient, identity: ModelIdentity, num_servers: int = 1
    ) -> None:
        self._client = client
        self.identity = identity
        self.max_windows = 1 + num_servers

    @classmethod
    async def connect(cls, server: str, *, timeout_s: float, model: str) -> "ServerScorer":
        """Wait for a server and ask for its model.

        Args:
            server: one address, or several with commas between them.
            timeout_s: the longest wait without any result.
            model: the name of the model that must answer; "" for any.

        Raises:
            RewardServiceError: no server answers, or it serves another model, or the servers score
                differently.
        """
        client = AsyncRewardClient(server, timeout_s=timeout_s, model=model)
        try:
            await client.wait_until_ready(min(5.0, timeout_s))
            served = await client.get_model()
            answers = (await client.get_models()).values()
            _check_alike(
                [
                    answer
                    for answer in answers
                    if isinstance(answer, ModelInfo) and answer.fingerprint == served.fingerprint
                ],
                server,
            )
        except BaseException:
            await client.close()
            raise
        identity = ModelIdentity(
            model=served.model,
            fingerprint=served.fingerprint,
            precision=served.precision,
            runtime=served.runtime,
            server_options={name: getattr(served, name) for name in _SERVER_OPTIONS},
        )
        return cls(client, identity, len(check_targets("server", server)))

    async def score(self, groups: Sequence[Group]) -> Sequence[GroupResult]:
        """Return one result per group, in order."""
        results = self._client.score_many(groups)
        return [result async for result in results]

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


def _check_alike(models: Sequence[ModelInfo], server: str) -> None:
    """Check that all servers give a conversation the same reward.

    Raises:
        RewardServiceError: a setting on which rewards depend differs between them.
    """
    for setting, values in differing_settings(models).items():
        raise RewardServiceError(
            "FAILED_PRECONDITION",
            f"the servers differ in {setting} ({', '.join(map(str, values))}), so their rewards "
            f"do not belong in one output; start them with one {flag_of(setting)}",
            target=server,
        )
