"""Clients of a kwise server. They need grpcio and protobuf, but no runtime, tokenizer or numpy.

with RewardClient("localhost:50051") as client:
    scored = client.score("What is 2 + 2?", ["4", "5"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kwise.client.errors import RewardServiceError
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
    TemplatedText,
    Timing,
)

if TYPE_CHECKING:
    from kwise.client.aio import AsyncRewardClient
    from kwise.client.credentials import Credentials
    from kwise.client.sync import RewardClient

__all__ = [
    "AsyncRewardClient",
    "ComparedGroup",
    "Comparison",
    "Counters",
    "Credentials",
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
    "TemplatedText",
    "Timing",
]

_MODULES = {
    "AsyncRewardClient": "kwise.client.aio",
    "Credentials": "kwise.client.credentials",
    "RewardClient": "kwise.client.sync",
}


def __getattr__(name: str) -> Any:
    """Import a client when it is first used, so that `kwise score --help` does not import grpc."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'kwise.client' has no attribute {name!r}")
