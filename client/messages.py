"""Conversion between Python arguments, `kwise.v1` messages and results, for both clients.

Types of arguments are checked here, because protobuf's own errors do not name a field. The server
checks limits, and that prompt and responses fit together.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from operator import index
from typing import Any, TypeAlias

from kwise.client.errors import RewardServiceError
from kwise.errors import InvalidRequest, KwiseError
from kwise.meanings import says_nothing
from kwise.protos.kwise.v1 import reward_pb2 as pb
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

# One message of the user; a conversation; or a text or token ids with the chat template applied.
PromptLike: TypeAlias = str | Sequence[Message | Mapping[str, str]] | TemplatedText | Sequence[int]
ResponsesLike: TypeAlias = Sequence[str] | Sequence[Sequence[int]]
GroupLike: TypeAlias = Group | tuple[PromptLike, ResponsesLike]
PriorityLike: TypeAlias = Priority | str

_PRIORITIES = {Priority.INTERACTIVE: pb.PRIORITY_INTERACTIVE, Priority.BULK: pb.PRIORITY_BULK}
_MESSAGE_KEYS = {"role", "content"}
_MAX_UINT32 = (1 << 32) - 1


# Requests

# gRPC's text if a server answers with HTTP/1.1. The status is that of any server that is away.
_HTTP_SERVER = "http1.x server"
# The longest time of the last call to a server that was not ready. It fails at once if gRPC knows
# the cause.
PROBE_S = 1.0


def to_group(
    model: str, prompt: PromptLike, responses: ResponsesLike, priority: PriorityLike
) -> pb.Group:
    """Return the group of a request.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value. The error names it.
    """
    return pb.Group(
        model=model,
        prompt=to_prompt("prompt", prompt),
        responses=_to_responses(responses),
        priority=to_priority(priority),
    )


def to_pairs(pairs: Sequence[tuple[int, int]] | None) -> list[pb.Pair]:
    """Return the pairs of a `CompareRequest`; None stands for all pairs.

    Raises:
        TypeError, ValueError: `pairs` is empty, or an item is not a pair of indices. The error
            names the item.
    """
    if pairs is None:
        return []
    messages = []
    expected = "pairs must be a sequence of pairs of indices, or None"
    for number, pair in enumerate(_items(expected, pairs)):
        name = f"pairs[{number}]"
        indices = _items(f"{name} must be two indices into responses", pair)
        if len(indices) != 2:
            raise ValueError(f"{name} must be two indices into responses; it has {len(indices)}")
        first, second = (_uint32(f"{name}[{end}]", value) for end, value in enumerate(indices))
        messages.append(pb.Pair(first=first, second=second))
    if not messages:
        raise ValueError("pairs is empty; give None for all pairs")
    return messages


def to_stream_group(model: str, group: GroupLike, priority: PriorityLike) -> pb.Group:
    """Return the message of one group of `score_many`.

    A `Group` keeps its own priority; a pair (prompt, responses) takes `priority`.

    Raises:
        TypeError, ValueError: it is not a group. The error names the wrong part.
    """
    if isinstance(group, Group):
        return to_group(model, group.prompt, group.responses, group.priority)
    expected = "a group must be a Group or a pair (prompt, responses)"
    pair = _items(expected, group)
    if len(pair) != 2 or isinstance(group, str):
        raise ValueError(f"{expected}; this {_type_name(group)} has {len(pair)} items")
    return to_group(model, pair[0], pair[1], priority)


def to_stream_groups(
    model: str, groups: Iterable[GroupLike], priority: PriorityLike
) -> Iterator[pb.Group | InvalidRequest]:
    """Yield the message of each group, or an error in place of an item that is not a group.

    Raises:
        ValueError: the priority is wrong.
    """
    to_priority(priority)
    for number, group in enumerate(groups):
        yield _to_stream_item(model, number, group, priority)


async def to_async_stream_groups(
    model: str, groups: AsyncIterable[GroupLike], priority: PriorityLike
) -> AsyncIterator[pb.Group | InvalidRequest]:
    """Yield the message of each group of an asynchronous iterable, as `to_stream_groups`."""
    to_priority(priority)
    number = 0
    async for group in groups:
        yield _to_stream_item(model, number, group, priority)
        number += 1


def _to_stream_item(
    model: str, number: int, group: GroupLike, priority: PriorityLike
) -> pb.Group | InvalidRequest:
    try:
        return to_stream_group(model, group, priority)
    except (TypeError, ValueError) as error:
        return InvalidRequest(f"groups[{number}]", str(error))


def to_prompt(name: str, prompt: Any) -> pb.Prompt:
    """Return the prompt of a group.

    Raises:
        TypeError, ValueError: it is not a prompt. The error calls it `name`.
    """
    if isinstance(prompt, str):
        return pb.Prompt(text=_text(name, prompt))
    if isinstance(prompt, TemplatedText):
        return pb.Prompt(templated_text=_text(f"{name}.text", prompt.text))
    expected = f"{name} must be a str, messages, a TemplatedText, or a sequence of token ids"
    items = _items(expected, prompt)
    if not items:
        raise ValueError(f"{expected}; it is empty")
    if isinstance(items[0], Message | Mapping):
        messages = [_to_message(f"{name}[{number}]", item) for number, item in enumerate(items)]
        return pb.Prompt(messages=pb.Conversation(messages=messages))
    if isinstance(items[0], str):
        raise TypeError(f"{expected}, not of str")
    return pb.Prompt(token_ids=_to_token_ids(name, items))


def _to_message(name: str, message: Any) -> pb.Message:
    if isinstance(message, Message):
        return pb.Message(
            role=_text(f"{name}.role", message.role),
            content=_text(f"{name}.content", message.content),
        )
    if not isinstance(message, Mapping):
        raise TypeError(
            f'{name} must be a Message or {{"role": …, "content": …}}, not {_type_name(message)}'
        )
    others = [key for key in message if key not in _MESSAGE_KEYS and not says_nothing(message[key])]
    if others:
        raise ValueError(
            f"{name} has {others[0]!r}; a message has role and content only, because a reward of "
            "the text alone would be that of another conversation"
        )
    if missing := _MESSAGE_KEYS - message.keys():
        raise ValueError(f"{name} has no {' and no '.join(sorted(missing))}")
    return pb.Message(
        role=_text(f"{name}['role']", message["role"]),
        content=_text(f"{name}['content']", message["content"]),
    )


def _to_responses(responses: Any) -> list[pb.Response]:
    expected = "responses must be a sequence of str or of sequences of token ids"
    if isinstance(responses, str):
        raise TypeError(f"{expected}, not one str")
    items = _items(expected, responses)
    return [to_response(f"responses[{number}]", item) for number, item in enumerate(items)]


def to_response(name: str, response: Any) -> pb.Response:
    """Return a response of a group.

    Raises:
        TypeError, ValueError: it is not a response. The error calls it `name`.
    """
    if isinstance(response, str):
        return pb.Response(text=_text(name, response))
    ids = _items(f"{name} must be a str or a sequence of token ids", response)
    return pb.Response(token_ids=_to_token_ids(name, ids))


def _to_token_ids(name: str, values: list[Any]) -> pb.TokenIds:
    ids = [_uint32(f"{name}[{number}]", value) for number, value in enumerate(values)]
    return pb.TokenIds(ids=ids)


def to_priority(priority: PriorityLike) -> pb.Priority:
    """Return the priority of a group.

    Raises:
        ValueError: it is not a priority.
    """
    try:
        return _PRIORITIES[Priority(priority)]
    except ValueError:
        choices = ", ".join(repr(member.value) for member in Priority)
        raise ValueError(
            f"priority must be a Priority or one of {choices}, not {priority!r}"
        ) from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {_type_name(value)}")
    try:
        # JSON can spell a lone surrogate ("\ud800"); UTF-8, and so protobuf, cannot.
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not Unicode text: a lone surrogate at character {error.start}"
        ) from None
    return value


def _uint32(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)  # accepts numpy's integers and tensors of one element too
    except TypeError:
        raise TypeError(f"{name} must be an int, not {_type_name(value)}") from None
    if not 0 <= number <= _MAX_UINT32:
        raise ValueError(f"{name} is {number}; it must be between 0 and {_MAX_UINT32}")
    return number


def _items(expected: str, value: Any) -> list[Any]:
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{expected}, not {_type_name(value)}")
    return list(value)


def _type_name(value: Any) -> str:
    return type(value).__name__


# Results


def from_scored_group(scored: pb.ScoredGroup) -> ScoredGroup:
    """Return the scored group of a reply."""
    return ScoredGroup(**_scored_fields(scored))


def from_rank_response(response: pb.RankResponse) -> RankedGroup:
    """Return the ranked group of a reply."""
    ranks = tuple(entry.rank if entry.HasField("rank") else None for entry in response.ranks)
    return RankedGroup(**_scored_fields(response.scored), ranks=ranks)


def from_compare_response(response: pb.CompareResponse) -> ComparedGroup:
    """Return the compared group of a reply."""
    comparisons = tuple(map(_from_comparison, response.comparisons))
    return ComparedGroup(**_scored_fields(response.scored), comparisons=comparisons)


def from_model_response(response: pb.GetModelResponse) -> ModelInfo:
    """Return the description of the model of a reply."""
    counters = {field.name: getattr(response.counters, field.name) for field in fields(Counters)}
    special = ("counters", "member_means", "member_stds")
    others = [field.name for field in fields(ModelInfo) if field.name not in special]
    return ModelInfo(
        **{name: getattr(response, name) for name in others},
        member_means=tuple(response.member_means),
        member_stds=tuple(response.member_stds),
        counters=Counters(**counters),
    )


def fingerprint_of(reply: Any) -> str:
    """Return the fingerprint of the model that gave a reply to a unary call."""
    fingerprint: str = getattr(reply, "scored", reply).fingerprint
    return fingerprint


def _scored_fields(scored: pb.ScoredGroup) -> dict[str, Any]:
    timing = scored.timing
    return {
        "rewards": tuple(map(_from_reward, scored.rewards)),
        "model": scored.model,
        "fingerprint": scored.fingerprint,
        "precision": scored.precision,
        "runtime": scored.runtime,
        "timing": Timing(
            tokenizer_ms=timing.tokenizer_ms, queue_ms=timing.queue_ms, model_ms=timing.model_ms
        ),
    }


def _from_reward(reward: pb.Reward) -> Reward | KwiseError:
    if reward.HasField("error"):
        return from_error(reward.error)
    return Reward(
        value=reward.value,
        raw=reward.raw,
        tokens=reward.tokens,
        dropped_tokens=reward.dropped_tokens,
        control_tokens=reward.control_tokens,
        cached=reward.cached,
        std=reward.std if reward.HasField("std") else None,
        min=reward.min if reward.HasField("min") else None,
        members=tuple(reward.members),
    )


def _from_comparison(comparison: pb.Comparison) -> Comparison:
    first, second = comparison.pair.first, comparison.pair.second
    if comparison.HasField("error"):
        return Comparison(first=first, second=second, error=from_error(comparison.error))
    return Comparison(
        first=first,
        second=second,
        margin=comparison.margin,
        win_probability=comparison.win_probability,
    )


# Errors


def from_error(error: pb.Error) -> RewardServiceError:
    """Return the error of a group or a response."""
    return RewardServiceError(
        error.code,
        error.message,
        retry_after_s=error.retry_after_ms / 1000 if error.HasField("retry_after_ms") else None,
        response=error.response if error.HasField("response") else None,
        over_limit=error.over_limit,
    )


def no_server(target: str, waited_s: float, probe: Any = None) -> RewardServiceError:
    """Return the error of a call to an address where no server became ready.

    Args:
        target: the address.
        waited_s: the seconds that the client waited.
        probe: the grpc.RpcError of a last call that did not wait. gRPC tells the cause there only.
    """
    problem = f"no server was ready within {waited_s:g} s"
    if probe is not None and probe.code().name == "UNAVAILABLE" and probe.details():
        problem += f": {_cause_of(probe.details())}"
    return RewardServiceError("UNAVAILABLE", problem, target=target)


def from_rpc_error(error: Any, target: str) -> RewardServiceError:
    """Return the error of a failed call to the server at `target`; raise it `from error`.

    `error` is the grpc.RpcError of a blocking or an asyncio call. Their common methods are not
    declared in that class.
    """
    trailers = dict(error.trailing_metadata() or ())
    retry_after_ms = trailers.get("grpc-retry-pushback-ms")
    response = trailers.get("kwise-response")
    return RewardServiceError(
        error.code().name,
        _cause_of(error.details() or "no details"),
        target=target,
        retry_after_s=None if retry_after_ms is None else float(retry_after_ms) / 1000,
        response=None if response is None else int(response),
        over_limit="kwise-over-limit" in trailers,
    )


def _cause_of(details: str) -> str:
    """Return gRPC's details of an error, in plain words where they are hard to read."""
    if _HTTP_SERVER in details:
        return (
            "this looks like an HTTP port: give the port for gRPC, which is that of kwise serve "
            "--port"
        )
    return details
