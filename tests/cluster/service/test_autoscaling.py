"""The number of replicas that the queued tokens ask for."""

from dataclasses import dataclass

import pytest

from kwise.cluster.service.autoscaling import QUEUED_TOKENS, QueuedTokensPolicy


@dataclass
class Context:
    """The part of Ray's AutoscalingContext that the policy reads."""

    aggregated_metrics: dict[str, dict[str, float]] | None


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (None, 0.0),
        ({}, 0.0),
        ({QUEUED_TOKENS: {"a": 0.0}}, 0.0),
        ({QUEUED_TOKENS: {"a": 1000.0, "b": 500.0}}, 1.5),
        ({QUEUED_TOKENS: {"a": 8000.0}, "other": {"a": 1e9}}, 8.0),
    ],
)
def test_one_replica_per_target_tokens(
    metrics: dict[str, dict[str, float]] | None, expected: float
) -> None:
    policy = QueuedTokensPolicy(target_queued_tokens=1000)
    assert policy(Context(metrics)) == (expected, {})
