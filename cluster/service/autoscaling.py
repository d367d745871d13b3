"""Choose the number of replicas by the tokens that wait or are being computed.

Ray's default counts requests. A request may have one response or two thousand, so kwise counts
tokens. Ray applies its bounds, delays and factors to the number that the policy returns.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext  # pyright: ignore[reportMissingImports]

# The key under which a replica reports its tokens (`RewardReplica.record_autoscaling_stats`).
QUEUED_TOKENS = "queued_tokens"


class QueuedTokensPolicy:
    """An autoscaling policy of Ray Serve.

    Args:
        target_queued_tokens: the tokens per replica to aim at.
    """

    def __init__(self, target_queued_tokens: int) -> None:
        self._target = target_queued_tokens

    def __call__(self, context: "AutoscalingContext") -> tuple[float, dict[str, Any]]:
        """Return the target number of replicas, and no state."""
        tokens = (context.aggregated_metrics or {}).get(QUEUED_TOKENS, {})
        return max(sum(tokens.values()) / self._target, 0.0), {}
