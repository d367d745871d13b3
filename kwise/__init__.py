"""kwise trains reward models on rankings, exports them to ONNX, and serves them.

This package is the common root. Its sub-packages are folders at the top level of the repository,
to which the links in this folder point:

    kwise.client   call a server; needs grpcio and protobuf only
    kwise.engine   serve an artifact
    kwise.export   checkpoint to artifact
    kwise.rl       reward functions for RL libraries, on top of the client
    kwise.train    rankings to checkpoint

`from kwise import RewardClient` loads the client when it is first used, so that `import kwise`
costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kwise.version import __version__

if TYPE_CHECKING:
    from kwise.client import AsyncRewardClient, RewardClient

__all__ = ["AsyncRewardClient", "RewardClient", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("AsyncRewardClient", "RewardClient"):
        return getattr(import_module("kwise.client"), name)
    raise AttributeError(f"module 'kwise' has no attribute {name!r}")
