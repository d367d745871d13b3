"""Between `kwise.v1` messages and the engine's own types, one function per message; and errors to gRPC statuses."""

import grpc

from kwise.comparison import compare, ranks
from kwise.engine.scorer import Scorer
from kwise.errors import InvalidRequest, KwiseError, Overloaded
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import (
    Comparison,
    Conversation,
    Group,
    Message,
    Priority,
    Reward,
    ScoredGroup,
    Timing,
    TokenIds,
)

_PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_BULK: Priority.BULK,
}


def status_code(error: KwiseError) -> grpc.StatusCode:
    """The one gRPC status of an error."""
    return grpc.StatusCode[error.status.name]


def to_group(
    request: "pb.ScoreRequest | pb.RankRequest | pb.CompareRequest", client: str = ""
) -> Group:
    """The group that a request of `client` asks about.

    Raises:
        InvalidRequest: a field is missing, or prompt and responses are of unlike kinds.
    """
    if (priority := _PRIORITIES.get(request.priority)) is None:
        raise InvalidRequest("priority", f"{request.priority} is not a Priority")
    prompt = _prompt(request.prompt)
    if not request.responses:
        raise InvalidRequest("responses", "there are none; give at least one")
    wanted = "token_ids" if request.prompt.WhichOneof("kind") == "token_ids" else "text"
    for index, response in enumerate(request.responses):
        if (kind := response.WhichOneof("kind")) != wanted:
            problem = (
                "neither text nor token_ids is set"
                if kind is None
                else f"{kind} cannot follow this kind of prompt"
            )
            raise InvalidRequest("", f"{problem}; this prompt needs {wanted}", response=index)
    if wanted == "token_ids":
        ids = tuple(tuple(response.token_ids.ids) for response in request.responses)
        return Group(prompt=prompt, responses=ids, priority=priority, client=client)
    texts = tuple(response.text for response in request.responses)
    return Group(prompt=prompt, responses=texts, priority=priority, client=client)


def _prompt(prompt: pb.Prompt) -> Conversation | TokenIds:
    match prompt.WhichOneof("kind"):
        case "text":
            return (Message(role="user", content=prompt.text),)
        case "messages":
            if not prompt.messages.messages:
                raise InvalidRequest("prompt.messages", "there are none; give at least one")
            for index, message in enumerate(prompt.messages.messages):
                if not message.role:
                    raise InvalidRequest(f"prompt.messages[{index}].role", "it is empty")
            return tuple(Message(role=m.role, content=m.content) for m in prompt.messages.messages)
        case "token_ids":
            if not prompt.token_ids.ids:
                raise InvalidRequest("prompt.token_ids", "there are none; give at least one")
            return tuple(prompt.token_ids.ids)
        case _:
            raise InvalidRequest("prompt", "none of text, messages and token_ids is set")


def to_score_response(scored: ScoredGroup) -> pb.ScoreResponse:
    return pb.ScoreResponse(
        rewards=map(to_reward, scored.rewards),
        model=scored.model,
        fingerprint=scored.fingerprint,
        precision=scored.precision,
        runtime=scored.runtime,
        timing=_timing(scored.timing),
    )


def to_rank_response(scored: ScoredGroup) -> pb.RankResponse:
    ranked = zip(ranks(scored.rewards), scored.rewards, strict=True)
    return pb.RankResponse(
        ranks=[pb.RankedResponse(rank=rank, reward=to_reward(reward)) for rank, reward in ranked],
        model=scored.model,
        fingerprint=scored.fingerprint,
        precision=scored.precision,
        runtime=scored.runtime,
        timing=_timing(scored.timing),
    )


def check_pairs(request: pb.CompareRequest) -> None:
    """Before any reward is computed.

    Raises:
        InvalidRequest: fewer than two responses, or a pair that names one that is not there.
    """
    count = len(request.responses)
    if count < 2:
        raise InvalidRequest("responses", f"there are {count}; a comparison needs at least two")
    for number, pair in enumerate(request.pairs):
        if max(pair.first, pair.second) >= count:
            raise InvalidRequest(
                f"pairs[{number}]", f"({pair.first}, {pair.second}) with {count} responses"
            )


def to_compare_response(scored: ScoredGroup, pairs: list[tuple[int, int]]) -> pb.CompareResponse:
    return pb.CompareResponse(
        comparisons=map(_comparison, compare(scored.rewards, pairs)),
        rewards=map(to_reward, scored.rewards),
        model=scored.model,
        fingerprint=scored.fingerprint,
        precision=scored.precision,
        runtime=scored.runtime,
        timing=_timing(scored.timing),
    )


def to_reward(reward: Reward | KwiseError) -> pb.Reward:
    if isinstance(reward, KwiseError):
        return pb.Reward(error=to_response_error(reward))
    return pb.Reward(
        value=reward.value,
        raw=reward.raw,
        tokens=reward.tokens,
        dropped_tokens=reward.dropped_tokens,
        control_tokens=reward.control_tokens,
        cached=reward.cached,
    )


def to_response_error(error: KwiseError) -> pb.ResponseError:
    return pb.ResponseError(
        code=error.status.name, message=str(error), retry_after_ms=retry_after_ms(error)
    )


def retry_after_ms(error: KwiseError) -> int:
    return round(error.retry_after_s * 1000) if isinstance(error, Overloaded) else 0


def to_model_response(scorer: Scorer) -> pb.GetModelResponse:
    manifest, config, counters = scorer.artifact.manifest, scorer.config, scorer.counters
    return pb.GetModelResponse(
        model=manifest.name,
        fingerprint=manifest.fingerprint,
        layout=manifest.layout,
        precision=scorer.precision.value,
        runtime=scorer.runtime,
        max_tokens=scorer.max_tokens,
        max_batch_tokens=config.max_batch_tokens,
        overlong=config.overlong.value,
        control_tokens=config.control_tokens.value,
        reward_mean=manifest.reward_mean,
        reward_std=manifest.reward_std,
        counters=pb.Counters(
            model_passes=counters.model_passes,
            sequences=counters.sequences,
            rows=counters.rows,
            unshared_rows=counters.unshared_rows,
            reused_rows=counters.reused_rows,
            cache_hits=counters.cache_hits,
            joined=counters.joined,
            rejected_groups=counters.rejected_groups,
            abandoned=counters.abandoned,
            busy_s=counters.busy_s,
            idle_with_work_s=counters.idle_with_work_s,
        ),
    )


def _comparison(comparison: Comparison) -> pb.Comparison:
    return pb.Comparison(
        pair=pb.Pair(first=comparison.first, second=comparison.second),
        margin=comparison.margin,
        win_probability=comparison.win_probability,
        error=None if comparison.error is None else to_response_error(comparison.error),
    )


def _timing(timing: Timing) -> pb.Timing:
    return pb.Timing(
        tokenizer_ms=timing.tokenizer_ms, queue_ms=timing.queue_ms, model_ms=timing.model_ms
    )
