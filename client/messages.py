"""Between Python arguments, `kwise.v1` messages and the client's results; the only module here that both clients need to
agree on.

Types are checked here, because protobuf's own complaints name no field. Limits and unlike kinds are the server's to judge.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from operator import index
from typing import Any, TypeAlias

from kwise.client.results import ComparedGroup, Counters, ModelInfo, RankedGroup, RewardServiceError
from kwise.errors import InvalidRequest, KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import Comparison, Group, Message, Priority, Reward, ScoredGroup, Timing

# One user turn; a conversation; or token ids with the chat template applied.
PromptLike: TypeAlias = str | Sequence[Message | Mapping[str, str]] | Sequence[int]
ResponsesLike: TypeAlias = Sequence[str] | Sequence[Sequence[int]]
GroupLike: TypeAlias = Group | tuple[PromptLike, ResponsesLike]
PriorityLike: TypeAlias = Priority | str

_PRIORITIES = {Priority.INTERACTIVE: pb.PRIORITY_INTERACTIVE, Priority.BULK: pb.PRIORITY_BULK}
_MAX_UINT32 = (1 << 32) - 1


def score_request(
    model: str, prompt: PromptLike, responses: ResponsesLike, priority: PriorityLike
) -> pb.ScoreRequest:
    """Raises TypeError or ValueError, naming the argument and what is expected; so do the two below."""
    return pb.ScoreRequest(
        model=model,
        prompt=_prompt(prompt),
        responses=_responses(responses),
        priority=_priority(priority),
    )


def rank_request(
    model: str, prompt: PromptLike, responses: ResponsesLike, priority: PriorityLike
) -> pb.RankRequest:
    return pb.RankRequest(
        model=model,
        prompt=_prompt(prompt),
        responses=_responses(responses),
        priority=_priority(priority),
    )


def compare_request(
    model: str,
    prompt: PromptLike,
    responses: ResponsesLike,
    pairs: Sequence[tuple[int, int]] | None,
    priority: PriorityLike,
) -> pb.CompareRequest:
    return pb.CompareRequest(
        model=model,
        prompt=_prompt(prompt),
        responses=_responses(responses),
        pairs=_pairs(pairs),
        priority=_priority(priority),
    )


def group_request(model: str, group: GroupLike, priority: PriorityLike) -> pb.ScoreRequest:
    """A `Group` keeps its own priority; a pair (prompt, responses) takes the one given."""
    if isinstance(group, Group):
        return score_request(model, group.prompt, group.responses, group.priority)
    expected = "a group must be a Group or a pair (prompt, responses)"
    pair = _items(expected, group)
    if len(pair) != 2 or isinstance(group, str):
        raise ValueError(f"{expected}; this {_kind(group)} has {len(pair)} items")
    return score_request(model, pair[0], pair[1], priority)


def group_requests(
    model: str, groups: Iterable[GroupLike], priority: PriorityLike
) -> Iterator[pb.ScoreRequest | InvalidRequest]:
    """One per group, in order; a group that is none has its error in its place. Raises ValueError for a wrong priority."""
    _priority(priority)
    for number, group in enumerate(groups):
        request: pb.ScoreRequest | InvalidRequest
        try:
            request = group_request(model, group, priority)
        except (TypeError, ValueError) as error:
            request = InvalidRequest(f"groups[{number}]", str(error))
        yield request


def scored_group(response: pb.ScoreResponse) -> ScoredGroup:
    return ScoredGroup(
        rewards=tuple(map(_reward, response.rewards)),
        model=response.model,
        fingerprint=response.fingerprint,
        precision=response.precision,
        runtime=response.runtime,
        timing=_timing(response.timing),
    )


def ranked_group(response: pb.RankResponse) -> RankedGroup:
    return RankedGroup(
        ranks=tuple(ranked.rank if ranked.HasField("rank") else None for ranked in response.ranks),
        rewards=tuple(_reward(ranked.reward) for ranked in response.ranks),
        model=response.model,
        fingerprint=response.fingerprint,
        precision=response.precision,
        runtime=response.runtime,
        timing=_timing(response.timing),
    )


def compared_group(response: pb.CompareResponse) -> ComparedGroup:
    return ComparedGroup(
        comparisons=tuple(map(_comparison, response.comparisons)),
        rewards=tuple(map(_reward, response.rewards)),
        model=response.model,
        fingerprint=response.fingerprint,
        precision=response.precision,
        runtime=response.runtime,
        timing=_timing(response.timing),
    )


def model_info(response: pb.GetModelResponse) -> ModelInfo:
    counters = Counters(
        **{field.name: getattr(response.counters, field.name) for field in fields(Counters)}
    )
    values = {
        field.name: getattr(response, field.name)
        for field in fields(ModelInfo)
        if field.name != "counters"
    }
    return ModelInfo(**values, counters=counters)


def response_error(error: pb.ResponseError) -> RewardServiceError:
    return RewardServiceError(
        error.code, error.message, retry_after_s=error.retry_after_ms / 1000 or None
    )


def no_server(target: str, waited_s: float) -> RewardServiceError:
    return RewardServiceError(
        "UNAVAILABLE", f"no server was ready within {waited_s:g} s", target=target
    )


def call_error(error: Any, target: str) -> RewardServiceError:
    """The end of a failed call to the server at `target`; raise it `from error`.

    `error` is a grpc.RpcError of a blocking or an asyncio call, whose common methods that class does not declare.
    """
    code, details, trailers = error.code(), error.details(), error.trailing_metadata()
    pushback_ms = next(
        (value for key, value in trailers or () if key == "grpc-retry-pushback-ms"), None
    )
    retry_after_s = None if pushback_ms is None else float(pushback_ms) / 1000
    return RewardServiceError(
        code.name, details or "no details", target=target, retry_after_s=retry_after_s
    )


def _prompt(prompt: Any) -> pb.Prompt:
    if isinstance(prompt, str):
        return pb.Prompt(text=_text("prompt", prompt))
    expected = "prompt must be a str, a sequence of messages, or a sequence of token ids"
    items = _items(expected, prompt)
    if not items:
        raise ValueError(f"{expected}; it is empty")
    if isinstance(items[0], Message | Mapping):
        messages = [_message(f"prompt[{number}]", item) for number, item in enumerate(items)]
        return pb.Prompt(messages=pb.Conversation(messages=messages))
    if isinstance(items[0], str):
        raise TypeError(f"{expected}, not of str")
    return pb.Prompt(token_ids=_token_ids("prompt", items))


def _message(name: str, message: Any) -> pb.Message:
    if isinstance(message, Message):
        return pb.Message(
            role=_text(f"{name}.role", message.role),
            content=_text(f"{name}.content", message.content),
        )
    if not isinstance(message, Mapping):
        raise TypeError(
            f'{name} must be a Message or {{"role": …, "content": …}}, not {_kind(message)}'
        )
    if missing := {"role", "content"} - message.keys():
        raise ValueError(f"{name} has no {' and no '.join(sorted(missing))}")
    role, content = message["role"], message["content"]
    return pb.Message(
        role=_text(f"{name}['role']", role), content=_text(f"{name}['content']", content)
    )


def _responses(responses: Any) -> list[pb.Response]:
    expected = "responses must be a sequence of str or of sequences of token ids"
    if isinstance(responses, str):
        raise TypeError(f"{expected}, not one str")
    return [
        _response(f"responses[{number}]", response)
        for number, response in enumerate(_items(expected, responses))
    ]


def _response(name: str, response: Any) -> pb.Response:
    if isinstance(response, str):
        return pb.Response(text=_text(name, response))
    ids = _items(f"{name} must be a str or a sequence of token ids", response)
    return pb.Response(token_ids=_token_ids(name, ids))


def _token_ids(name: str, values: list[Any]) -> pb.TokenIds:
    return pb.TokenIds(
        ids=[_uint32(f"{name}[{number}]", value) for number, value in enumerate(values)]
    )


def _pairs(pairs: Any) -> list[pb.Pair]:
    if pairs is None:
        return []
    checked = []
    for number, pair in enumerate(
        _items("pairs must be a sequence of pairs of indices, or None", pairs)
    ):
        name = f"pairs[{number}]"
        ends = _items(f"{name} must be two indices into responses", pair)
        if len(ends) != 2:
            raise ValueError(f"{name} must be two indices into responses; it has {len(ends)}")
        checked.append(
            pb.Pair(first=_uint32(f"{name}[0]", ends[0]), second=_uint32(f"{name}[1]", ends[1]))
        )
    if not checked:
        raise ValueError("pairs is empty; give None for all pairs")
    return checked


def _priority(priority: PriorityLike) -> pb.Priority:
    try:
        return _PRIORITIES[Priority(priority)]
    except ValueError:
        choices = ", ".join(repr(member.value) for member in Priority)
        raise ValueError(
            f"priority must be a Priority or one of {choices}, not {priority!r}"
        ) from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {_kind(value)}")
    try:
        value.encode()  # JSON can spell a lone surrogate ("\ud800"); UTF-8, and so protobuf, cannot
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not Unicode text: a lone surrogate at character {error.start}"
        ) from None
    return value


def _uint32(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)  # also numpy's integers and tensors of one element
    except TypeError:
        raise TypeError(f"{name} must be an int, not {_kind(value)}") from None
    if not 0 <= number <= _MAX_UINT32:
        raise ValueError(f"{name} is {number}; it must be between 0 and {_MAX_UINT32}")
    return number


def _items(expected: str, value: Any) -> list[Any]:
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{expected}, not {_kind(value)}")
    return list(value)


def _kind(value: Any) -> str:
    return type(value).__name__


def _reward(reward: pb.Reward) -> Reward | KwiseError:
    if reward.HasField("error"):
        return response_error(reward.error)
    return Reward(
        value=reward.value,
        raw=reward.raw,
        tokens=reward.tokens,
        dropped_tokens=reward.dropped_tokens,
        control_tokens=reward.control_tokens,
        cached=reward.cached,
    )


def _comparison(comparison: pb.Comparison) -> Comparison:
    first, second = comparison.pair.first, comparison.pair.second
    if comparison.HasField("error"):
        return Comparison(first=first, second=second, error=response_error(comparison.error))
    return Comparison(
        first=first,
        second=second,
        margin=comparison.margin,
        win_probability=comparison.win_probability,
    )


def _timing(timing: pb.Timing) -> Timing:
    return Timing(
        tokenizer_ms=timing.tokenizer_ms, queue_ms=timing.queue_ms, model_ms=timing.model_ms
    )
