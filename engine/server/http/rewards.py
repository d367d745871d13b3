"""kwise's own endpoints: the RPCs of kwise.v1 as JSON."""

from http import HTTPStatus

from kwise.engine.server.call import Call
from kwise.engine.server.http.endpoint import Endpoint
from kwise.engine.server.http.replies import (
    CompareResponse,
    RankResponse,
    ScoreResponse,
    from_compared_group,
    from_ranked_group,
    from_scored_group,
)
from kwise.engine.server.http.requests import CompareRequest, ScoreRequest, to_group, to_pairs
from kwise.types import Group


async def _score(call: Call, request: ScoreRequest) -> ScoreResponse:
    group, model = _group(call, request)
    scored = await call.service.score(group, model)
    return ScoreResponse(scored=await from_scored_group(scored))


async def _rank(call: Call, request: ScoreRequest) -> RankResponse:
    group, model = _group(call, request)
    return await from_ranked_group(await call.service.rank(group, model))


async def _compare(call: Call, request: CompareRequest) -> CompareResponse:
    group, model = _group(call, request, num_pairs=len(request.pairs))
    pairs = await to_pairs(request.pairs)
    return await from_compared_group(await call.service.compare(group, pairs, model))


def _group(call: Call, request: ScoreRequest, num_pairs: int = 0) -> tuple[Group, str]:
    """Return the group of a request, and the model that must answer."""
    body = request.group_body()
    call.service.limits.check(len(body.responses), num_pairs)
    model = call.served(body.model)
    return to_group(body, call.client, model.max_tokens), model.name


_STATUSES = (
    HTTPStatus.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
)
_ERRORS = (
    "A response that cannot be scored has an `error` in place of its reward, and the others are "
    "scored."
)
_TAG = "kwise"
ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/rewards",
        handler=_score,
        summary="Return one reward per response, in the order of the request",
        description=f"JSON of kwise.v1.RewardService.Score. {_ERRORS}",
        tag=_TAG,
        request=ScoreRequest,
        response=ScoreResponse,
        error_statuses=_STATUSES,
    ),
    Endpoint(
        method="POST",
        path="/v1/ranks",
        handler=_rank,
        summary="Return the rewards and ranks of the responses",
        description=f"JSON of kwise.v1.RewardService.Rank. {_ERRORS}",
        tag=_TAG,
        request=ScoreRequest,
        response=RankResponse,
        error_statuses=_STATUSES,
    ),
    Endpoint(
        method="POST",
        path="/v1/comparisons",
        handler=_compare,
        summary="Return the rewards, and the margin and win probability of pairs of responses",
        description=f"JSON of kwise.v1.RewardService.Compare. {_ERRORS}",
        tag=_TAG,
        request=CompareRequest,
        response=CompareResponse,
        error_statuses=_STATUSES,
    ),
)
