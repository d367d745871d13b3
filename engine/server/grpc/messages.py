"""Conversion between `kwise.v1` messages and kwise's own types, one function per message."""

from collections.abc import Iterable

import grpc

from kwise.engine.server.conversation import plain, to_conversation
from kwise.engine.slices import CHEAP_SLICE_ITEMS, in_slices, in_slices_of_ids
from kwise.errors import InvalidRequest, KwiseError, Overloaded
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import (
    ComparedGroup,
    Comparison,
    Conversation,
    Group,
    Message,
    ModelInfo,
    Priority,
    RankedGroup,
    Reward,
    ScoredGroup,
    TemplatedText,
    TokenIds,
)

_PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_BULK: Priority.BULK,
}


def status_code(error: KwiseError) -> grpc.StatusCode:
    """Return the gRPC status of an error."""
    return grpc.StatusCode[error.status.name]


def trailers(error: KwiseError) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata of a call that fails with `error`. See reward.proto."""
    metadata = []
    if isinstance(error, Overloaded):
        # gRPC's retry policy obeys this key (gRFC A6, "pushback").
        metadata.append(("grpc-retry-pushback-ms", str(_retry_after_ms(error))))
    if error.response is not None:
        metadata.append(("kwise-response", str(error.response)))
    if error.over_limit:
        metadata.append(("kwise-over-limit", "1"))
    return tuple(metadata)


async def to_group(group: pb.Group, client: str = "") -> Group:
    """Return the group of a request of `client`. It is converted in slices, see `in_slices`.

    Raises:
        InvalidRequest: a field is missing, or a response is not of the kind that the prompt needs.
    """
    if (priority := _PRIORITIES.get(group.priority)) is None:
        raise InvalidRequest("priority", f"{group.priority} is not a Priority")
    prompt = _to_prompt(group.prompt)
    if not group.responses:
        raise InvalidRequest("responses", "there are none; give at least one")
    expected = "token_ids" if group.prompt.WhichOneof("kind") == "token_ids" else "text"
    for index, response in enumerate(group.responses):
        if (kind := response.WhichOneof("kind")) != expected:
            field = "neither text nor token_ids" if kind is None else kind
            raise InvalidRequest(
                "", f"{field} is set; this prompt needs {expected}", response=index
            )
    responses: tuple[str, ...] | tuple[TokenIds, ...]
    if expected == "token_ids":
        sequences: list[TokenIds] = []
        async for part in in_slices_of_ids(group.responses, lambda r: len(r.token_ids.ids)):
            sequences += [tuple(response.token_ids.ids) for response in part]
        responses = tuple(sequences)
    else:
        responses = tuple(response.text for response in group.responses)
    return Group(prompt=prompt, responses=responses, priority=priority, client=client)


def _to_prompt(prompt: pb.Prompt) -> Conversation | TemplatedText | TokenIds:
    match prompt.WhichOneof("kind"):
        case "text":
            return plain(prompt.text)
        case "messages":
            messages = (Message(role=m.role, content=m.content) for m in prompt.messages.messages)
            return to_conversation(messages, "prompt.messages")
        case "token_ids":
            if not prompt.token_ids.ids:
                raise InvalidRequest("prompt.token_ids", "there are none; give at least one")
            return tuple(prompt.token_ids.ids)
        case "templated_text":
            return TemplatedText(text=prompt.templated_text)
        case _:
            raise InvalidRequest(
                "prompt", "none of text, messages, token_ids and templated_text is set"
            )


async def to_pairs(pairs: Iterable[pb.Pair]) -> list[tuple[int, int]]:
    """Return pairs of indices. They are built in slices, see `in_slices`."""
    converted: list[tuple[int, int]] = []
    async for part in in_slices(pairs, CHEAP_SLICE_ITEMS):
        converted += [(pair.first, pair.second) for pair in part]
    return converted


async def from_scored_group(scored: ScoredGroup) -> pb.ScoredGroup:
    """Return the message of a scored group. It is built in slices, see `in_slices`."""
    message = pb.ScoredGroup(
        model=scored.model,
        fingerprint=scored.fingerprint,
        precision=scored.precision,
        runtime=scored.runtime,
        timing=pb.Timing(
            tokenizer_ms=scored.timing.tokenizer_ms,
            queue_ms=scored.timing.queue_ms,
            model_ms=scored.timing.model_ms,
        ),
    )
    async for rewards in in_slices(scored.rewards):
        message.rewards.extend(map(_from_reward, rewards))
    return message


async def from_ranked_group(ranked: RankedGroup) -> pb.RankResponse:
    """Return the message of a ranked group."""
    response = pb.RankResponse(ranks=(pb.Rank(rank=rank) for rank in ranked.ranks))
    response.scored.MergeFrom(await from_scored_group(ranked))
    return response


async def from_compared_group(compared: ComparedGroup) -> pb.CompareResponse:
    """Return the message of a compared group. It is built in slices, see `in_slices`."""
    response = pb.CompareResponse(scored=await from_scored_group(compared))
    async for comparisons in in_slices(compared.comparisons):
        response.comparisons.extend(map(_from_comparison, comparisons))
    return response


def _from_reward(reward: Reward | KwiseError) -> pb.Reward:
    if isinstance(reward, KwiseError):
        return pb.Reward(error=from_error(reward))
    message = pb.Reward(
        value=reward.value,
        raw=reward.raw,
        tokens=reward.tokens,
        dropped_tokens=reward.dropped_tokens,
        control_tokens=reward.control_tokens,
        cached=reward.cached,
    )
    if reward.std is not None and reward.min is not None:
        message.std, message.min = reward.std, reward.min
        message.members.extend(reward.members)
    return message


def _from_comparison(comparison: Comparison) -> pb.Comparison:
    return pb.Comparison(
        pair=pb.Pair(first=comparison.first, second=comparison.second),
        margin=comparison.margin,
        win_probability=comparison.win_probability,
        error=None if comparison.error is None else from_error(comparison.error),
    )


def from_error(error: KwiseError) -> pb.Error:
    """Return the message of an error of a group or a response."""
    return pb.Error(
        code=error.status.name,
        message=str(error),
        retry_after_ms=_retry_after_ms(error) if isinstance(error, Overloaded) else None,
        response=error.response,
        over_limit=error.over_limit,
    )


def _retry_after_ms(error: Overloaded) -> int:
    return round(error.retry_after_s * 1000)


def from_model_info(info: ModelInfo) -> pb.GetModelResponse:
    """Return the message that describes the model."""
    counters = {
        name: getattr(info.counters, name) for name in pb.Counters.DESCRIPTOR.fields_by_name
    }
    others = [n for n in pb.GetModelResponse.DESCRIPTOR.fields_by_name if n != "counters"]
    return pb.GetModelResponse(
        **{name: getattr(info, name) for name in others}, counters=pb.Counters(**counters)
    )
