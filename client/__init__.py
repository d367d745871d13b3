"""Clients of a kwise server. They need grpcio and protobuf, but no runtime, tokenizer or numpy.

with RewardClient("localhost:50051") as client:
    scored = client.score("What is 2 + 2?", ["4", "5"])
"""

from kwise.client.aio import AsyncRewardClient
from kwise.client.errors import RewardServiceError
from kwise.client.sync import RewardClient
from kwise.errors import InvalidRequest, KwiseError, Status
from kwise.types import (
    ComparedGroup,
    Comparison,
    Counters,
    Group,
    Message,
    ModelInfo,
    Priority,
    RankedGroup,
    Reward,
    ScoredGroup,
    Timing,
)

__all__ = [
    "AsyncRewardClient",
    "ComparedGroup",
    "Comparison",
    "Counters",
    "Group",
    "InvalidRequest",
    "KwiseError",
    "Message",
    "ModelInfo",
    "Priority",
    "RankedGroup",
    "Reward",
    "RewardClient",
    "RewardServiceError",
    "ScoredGroup",
    "Status",
    "Timing",
]
