"""The bodies of replies of kwise's own endpoints, and their conversion from kwise's types.

They are the JSON form of kwise.v1, with the names of reward.proto, and `json_format` reads them.
The numbers of a failed response are null, because JSON has no NaN.
"""

import msgspec
from msgspec import UNSET, UnsetType

from kwise.engine.server.http.errors import ErrorDetail
from kwise.engine.slices import in_slices
from kwise.errors import KwiseError
from kwise.types import ComparedGroup, Comparison, RankedGroup, Reward, ScoredGroup


class RewardBody(msgspec.Struct, kw_only=True):
    """kwise.v1.Reward. With `error`, the response was not scored: value and raw are null.

    `std`, `min` and `members` are absent unless the model has members.
    """

    value: float | None = None
    raw: float | None = None
    tokens: int = 0
    dropped_tokens: int = 0
    control_tokens: int = 0
    cached: bool = False
    error: ErrorDetail | UnsetType = UNSET
    std: float | UnsetType = UNSET
    min: float | UnsetType = UNSET
    members: tuple[float, ...] | UnsetType = UNSET


class TimingBody(msgspec.Struct, kw_only=True):
    """kwise.v1.Timing, in milliseconds."""

    tokenizer_ms: float
    queue_ms: float
    model_ms: float


class ScoredGroupBody(msgspec.Struct, kw_only=True):
    """kwise.v1.ScoredGroup: one reward per response, in the order of the request."""

    rewards: list[RewardBody]
    model: str
    fingerprint: str
    precision: str
    runtime: str
    timing: TimingBody


class ScoreResponse(msgspec.Struct, kw_only=True):
    """kwise.v1.ScoreResponse."""

    scored: ScoredGroupBody


class RankBody(msgspec.Struct, kw_only=True):
    """kwise.v1.Rank: 1 is the best. Absent if the response has no reward."""

    rank: int | UnsetType = UNSET


class RankResponse(ScoreResponse, kw_only=True):
    """kwise.v1.RankResponse: one rank per response, in the order of the request."""

    ranks: list[RankBody]


class PairReply(msgspec.Struct, kw_only=True):
    """kwise.v1.Pair: indices of two responses."""

    first: int
    second: int


class ComparisonBody(msgspec.Struct, kw_only=True):
    """kwise.v1.Comparison. With `error`, margin and win_probability are null."""

    pair: PairReply
    margin: float | None = None
    win_probability: float | None = None
    error: ErrorDetail | UnsetType = UNSET


class CompareResponse(ScoreResponse, kw_only=True):
    """kwise.v1.CompareResponse: one comparison per pair, in the order of the request."""

    comparisons: list[ComparisonBody]


async def from_scored_group(scored: ScoredGroup) -> ScoredGroupBody:
    """Return the body of a scored group. It is built in slices, see `in_slices`."""
    rewards: list[RewardBody] = []
    async for part in in_slices(scored.rewards):
        rewards += map(_from_reward, part)
    timing = scored.timing
    return ScoredGroupBody(
        rewards=rewards,
        model=scored.model,
        fingerprint=scored.fingerprint,
        precision=scored.precision,
        runtime=scored.runtime,
        timing=TimingBody(
            tokenizer_ms=timing.tokenizer_ms, queue_ms=timing.queue_ms, model_ms=timing.model_ms
        ),
    )


async def from_ranked_group(ranked: RankedGroup) -> RankResponse:
    """Return the body of a ranked group."""
    return RankResponse(
        scored=await from_scored_group(ranked),
        ranks=[RankBody(rank=UNSET if rank is None else rank) for rank in ranked.ranks],
    )


async def from_compared_group(compared: ComparedGroup) -> CompareResponse:
    """Return the body of a compared group. It is built in slices, see `in_slices`."""
    comparisons: list[ComparisonBody] = []
    async for part in in_slices(compared.comparisons):
        comparisons += map(_from_comparison, part)
    return CompareResponse(scored=await from_scored_group(compared), comparisons=comparisons)


def _from_reward(reward: Reward | KwiseError) -> RewardBody:
    if isinstance(reward, KwiseError):
        return RewardBody(error=_from_error(reward))
    return RewardBody(
        value=reward.value,
        raw=reward.raw,
        tokens=reward.tokens,
        dropped_tokens=reward.dropped_tokens,
        control_tokens=reward.control_tokens,
        cached=reward.cached,
        std=UNSET if reward.std is None else reward.std,
        min=UNSET if reward.min is None else reward.min,
        members=reward.members or UNSET,
    )


def _from_comparison(comparison: Comparison) -> ComparisonBody:
    return ComparisonBody(
        pair=PairReply(first=comparison.first, second=comparison.second),
        margin=comparison.margin if comparison.error is None else None,
        win_probability=comparison.win_probability if comparison.error is None else None,
        error=UNSET if comparison.error is None else _from_error(comparison.error),
    )


def _from_error(error: KwiseError) -> ErrorDetail:
    return ErrorDetail(
        code=error.status.name,
        message=str(error),
        response=error.response,
        over_limit=error.over_limit,
    )
