"""OpenRLHF's remote reward model: POST /get_reward.

The user sets `--reward.remote_url http://HOST:PORT/get_reward` and nothing else (read in OpenRLHF
0.11.2: openrlhf/utils/agent.py, openrlhf/trainer/ppo_utils/samples_generator.py).

A query is a whole conversation, decoded from token ids with its special tokens: the chat template
is applied. Each call has one query.

The protocol has no error for a reward. The client tries 5 times, a second apart, whatever the
status, and ignores Retry-After. Then the reward is None and the run ends. Therefore a call that the
queue has no room for is held, because the client waits for 180 s. A query that cannot be scored
gets an error instead of an invented number, so the run ends after 5 tries. The client's log has the
status only, so the server logs the reason.

`extra_logs` become tensors, so they are numbers, and each reply has the same keys.
"""

from statistics import fmean
from typing import Any

import msgspec

from kwise.engine.server.call import Call
from kwise.engine.server.http.bodies.fields import STATUSES, reply
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.sample import of_templated
from kwise.engine.server.samples.scoring import HOLD_S, check_size, score_samples
from kwise.errors import InvalidRequest


class RewardsRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Queries to score. `prompts` and `labels` do not change a reward, and are not read."""

    query: list[str]
    prompts: Any = None
    labels: Any = None


class ExtraLogs(msgspec.Struct, kw_only=True):
    """Numbers for the metrics of a run: means over the queries of the call."""

    kwise_tokens: float
    kwise_dropped_tokens: float
    kwise_cached: float
    kwise_queue_ms: float
    kwise_model_ms: float


class RewardsReply(msgspec.Struct, kw_only=True):
    """The rewards, one per query. `scores` are the same numbers."""

    rewards: list[float]
    scores: list[float]
    extra_logs: ExtraLogs


async def get_reward(call: Call, body: RewardsRequest) -> Reply:
    """Score the queries."""
    if not body.query:
        raise InvalidRequest("query", "the list is empty; give at least one")
    check_size(call, "query", len(body.query))
    fields = [f"query[{index}]" for index in range(len(body.query))]
    samples = of_templated(body.query, fields)
    scored = await score_samples(call, samples, hold_s=HOLD_S)
    rewards = [reward.value for reward in scored.rewards]
    extra_logs = ExtraLogs(
        kwise_tokens=fmean(reward.tokens for reward in scored.rewards),
        kwise_dropped_tokens=fmean(reward.dropped_tokens for reward in scored.rewards),
        kwise_cached=fmean(reward.cached for reward in scored.rewards),
        kwise_queue_ms=scored.timing.queue_ms,
        kwise_model_ms=scored.timing.model_ms,
    )
    return reply(RewardsReply(rewards=rewards, scores=rewards, extra_logs=extra_logs), scored)


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/get_reward",
        handler=get_reward,
        summary="Score whole conversations that have the chat template applied",
        description=(
            f"A call that the queue has no room for is held for up to {HOLD_S:g} s, because "
            "OpenRLHF ends a run whose calls are refused."
        ),
        tag="OpenRLHF",
        request=RewardsRequest,
        response=RewardsReply,
        error_statuses=STATUSES,
        logs_for="OpenRLHF",
    ),
)
