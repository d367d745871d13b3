"""The client of kwise.v1. Needs grpcio and protobuf alone: no runtime, no tokenizer, no numpy.

with RewardClient("localhost:50051") as client:
    scored = client.score("What is 2 + 2?", ["4", "5"])
"""

from kwise.client.aio import AsyncRewardClient
from kwise.client.results import ComparedGroup, Counters, ModelInfo, RankedGroup, RewardServiceError
from kwise.client.sync import RewardClient
from kwise.errors import InvalidRequest, KwiseError
from kwise.types import Comparison, Group, Message, Priority, Reward, ScoredGroup, Timing

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
    "Timing",
]
