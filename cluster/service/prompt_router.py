"""Choose the replica of a request by its prompt, so that caches and joins are where it goes.

Each replica has a reward cache, a prompt cache and a table of rewards in flight. Requests for one
prompt profit from them only at the same replica. All routers agree without talking to each other
(`replica_order.py`).

Ray's own ConsistentHashRouter does this for sessions with a ring. Its shares are less even, it is
marked experimental, and it cannot keep the prompts of one model on a few replicas.

Ray pickles this module by value and loads it in every process that has a handle.
"""

from typing import Any

from ray.serve.request_router import (  # pyright: ignore[reportMissingImports]
    PendingRequest,
    RequestRouter,
    RunningReplica,
)

from kwise.cluster.service.replica_order import replicas_for
from kwise.types import Group


class PromptRouter(RequestRouter):
    """Routes `score(model, group)` by rendezvous hashing, and other calls to any replica.

    A replica with as many requests as it accepts is passed over for the next one in the ranking.
    """

    _replicas_per_model = 0

    def initialize_state(self, replicas_per_model: int = 0) -> None:
        """Take the option from `RequestRouterConfig.request_router_kwargs`."""
        self._replicas_per_model = replicas_per_model

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return one list per replica, best first. Ray takes the first that accepts."""
        if pending_request is None:
            return [candidate_replicas]
        # Pause between rounds in which all replicas are full.
        pending_request.routing_context.should_backoff = True
        arguments: Any = pending_request.args
        if len(arguments) != 2 or not isinstance(arguments[1], Group):
            return [candidate_replicas]
        model, group = arguments
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        order = replicas_for(model, group, list(replicas), self._replicas_per_model)
        return [[replicas[name]] for name in order]
