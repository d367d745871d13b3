"""The bodies of kwise's own endpoints, and their conversion to kwise's types and back.

They are the JSON form of kwise.v1: what protobuf's `json_format` writes is read here, and what is
written here `json_format` reads. Names of fields may be in camelCase, as `json_format` writes them,
or as they are in reward.proto; replies have the names of reward.proto. Besides, a request may be
written in a shorter form:

    {"prompt": "Why?", "responses": ["Because.", "Dunno."]}
    {"prompt": [{"role": "user", "content": "Why?"}], "responses": ["Because."]}
    {"prompt": [1, 2, 3], "responses": [[4, 5], [6]]}

Numbers that a failed response does not have are null; JSON has no NaN.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kwise.engine.server.http.errors import ErrorDetail
from kwise.engine.slices import CHEAP_SLICE_ITEMS, in_slices
from kwise.errors import InvalidRequest, KwiseError
from kwise.options import MAX_UINT32
from kwise.types import (
    ComparedGroup,
    Comparison,
    Conversation,
    Group,
    Message,
    Priority,
    RankedGroup,
    Reward,
    ScoredGroup,
    TemplatedText,
    TokenIds,
)

Uint32: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_UINT32)]

_PRIORITIES: dict[str | int | None, Priority] = {
    None: Priority.INTERACTIVE,
    "PRIORITY_UNSPECIFIED": Priority.INTERACTIVE,
    "PRIORITY_INTERACTIVE": Priority.INTERACTIVE,
    "PRIORITY_BULK": Priority.BULK,
    "interactive": Priority.INTERACTIVE,
    "bulk": Priority.BULK,
    0: Priority.INTERACTIVE,
    1: Priority.INTERACTIVE,
    2: Priority.BULK,
}


class _Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a request. Fields that are not known are refused."""


# Requests. A field that may be spelled in two ways is two fields here.


class MessageBody(_Request):
    """One message of a conversation."""

    role: str = ""
    content: str = ""


class ConversationBody(_Request):
    """kwise.v1.Conversation."""

    messages: list[MessageBody] = []


class TokenIdsBody(_Request):
    """kwise.v1.TokenIds."""

    ids: tuple[Uint32, ...] = ()


class PromptBody(_Request):
    """kwise.v1.Prompt: one of the fields."""

    text: str | None = None
    messages: ConversationBody | list[MessageBody] | None = None
    token_ids: TokenIdsBody | tuple[Uint32, ...] | None = None
    token_ids_camel: TokenIdsBody | tuple[Uint32, ...] | None = msgspec.field(
        default=None, name="tokenIds"
    )
    templated_text: str | None = None
    templated_text_camel: str | None = msgspec.field(default=None, name="templatedText")


class ResponseBody(_Request):
    """kwise.v1.Response: one of the fields."""

    text: str | None = None
    token_ids: TokenIdsBody | tuple[Uint32, ...] | None = None
    token_ids_camel: TokenIdsBody | tuple[Uint32, ...] | None = msgspec.field(
        default=None, name="tokenIds"
    )


class GroupBody(_Request):
    """kwise.v1.Group: K responses to a prompt.

    `prompt` is a text (one message of the user), messages, token ids, or a kwise.v1.Prompt.
    `responses` are texts, token ids, or kwise.v1.Response. `priority` is "interactive" or "bulk".
    """

    model: str | None = None
    prompt: str | list[MessageBody | Uint32] | PromptBody | None = None
    responses: list[str | tuple[Uint32, ...] | ResponseBody] = []
    priority: str | int | None = None


class ScoreRequest(GroupBody):
    """kwise.v1.ScoreRequest (and RankRequest). The fields of `group` may be here instead."""

    group: GroupBody | None = None

    def group_body(self) -> GroupBody:
        """Return the group, wherever its fields are.

        Raises:
            InvalidRequest: they are in both places.
        """
        if self.group is None:
            return self
        for name in GroupBody.__struct_fields__:
            if getattr(self, name):
                raise InvalidRequest(name, "it is given beside group; give it in group only")
        return self.group


class PairBody(_Request):
    """kwise.v1.Pair: indices of two responses."""

    first: Uint32 = 0
    second: Uint32 = 0


class CompareRequest(ScoreRequest):
    """kwise.v1.CompareRequest. A pair may also be [first, second]; no pairs stand for all."""

    pairs: list[PairBody | tuple[Uint32, Uint32]] = []


def to_group(body: GroupBody, client: str) -> Group:
    """Return the group that `client` asks about.

    Raises:
        InvalidRequest: a field is missing, or a response is of another kind than the prompt needs.
    """
    if body.priority not in _PRIORITIES:
        raise InvalidRequest(
            "priority", f"{str(body.priority)[:50]!r} is not a Priority; give interactive or bulk"
        )
    prompt = _to_prompt(body.prompt)
    if not body.responses:
        raise InvalidRequest("responses", "there are none; give at least one")
    is_ids = isinstance(prompt, tuple) and not isinstance(prompt[0], Message)
    expected: type = tuple if is_ids else str
    responses = tuple(
        response
        if type(response) is expected
        else _to_response(response, index=index, needs_ids=is_ids)
        for index, response in enumerate(body.responses)
    )
    return Group(
        prompt=prompt,
        responses=responses,  # type: ignore[arg-type]  # all of them are `expected`
        priority=_PRIORITIES[body.priority],
        client=client,
    )


def _to_prompt(prompt: Any) -> Conversation | TemplatedText | TokenIds:
    match prompt:
        case str():
            return (Message(role="user", content=prompt),)
        case None:
            raise InvalidRequest("prompt", "it is missing")
        case PromptBody():
            return _to_prompt_of_kind(prompt)
        case []:
            raise InvalidRequest("prompt", "it is empty; give at least one message or token id")
    if all(isinstance(item, MessageBody) for item in prompt):
        return _to_conversation(prompt, "prompt")
    if any(isinstance(item, MessageBody) for item in prompt):
        raise InvalidRequest("prompt", "it has both messages and token ids")
    return tuple(prompt)


def _to_prompt_of_kind(prompt: PromptBody) -> Conversation | TemplatedText | TokenIds:
    token_ids = _either(prompt.token_ids, prompt.token_ids_camel, "prompt.token_ids")
    templated = _either(prompt.templated_text, prompt.templated_text_camel, "prompt.templated_text")
    kinds = {
        "text": prompt.text,
        "messages": prompt.messages,
        "token_ids": token_ids,
        "templated_text": templated,
    }
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) != 1:
        problem = " and ".join(given) + " are" if given else f"none of {', '.join(kinds)} is"
        raise InvalidRequest("prompt", f"{problem} set; give one of them")
    if prompt.text is not None:
        return (Message(role="user", content=prompt.text),)
    if prompt.messages is not None:
        inner = prompt.messages
        return _to_conversation(
            inner.messages if isinstance(inner, ConversationBody) else inner, "prompt.messages"
        )
    if templated is not None:
        return TemplatedText(text=templated)
    if not (ids := _ids(token_ids)):
        raise InvalidRequest("prompt.token_ids", "there are none; give at least one")
    return ids


def _to_conversation(messages: Sequence[MessageBody], path: str) -> Conversation:
    if not messages:
        raise InvalidRequest(path, "there are none; give at least one")
    for index, message in enumerate(messages):
        if not message.role:
            raise InvalidRequest(f"{path}[{index}].role", "it is empty")
    return tuple(Message(role=message.role, content=message.content) for message in messages)


def _to_response(response: Any, *, index: int, needs_ids: bool) -> str | TokenIds:
    """Return a response that is not in its short form, or is of the wrong kind."""
    text, ids = None, None
    if isinstance(response, ResponseBody):
        text = response.text
        path = f"responses[{index}].token_ids"
        ids = _ids(_either(response.token_ids, response.token_ids_camel, path))
        if text is not None and ids is not None:
            raise InvalidRequest("", "text and token_ids are set; give one", response=index)
    elif isinstance(response, str):
        text = response
    else:
        ids = response
    wanted: str | TokenIds | None = ids if needs_ids else text
    if wanted is None:
        given = "text" if text is not None else "token_ids"
        given = "neither text nor token_ids" if text is None and ids is None else given
        expected = "token_ids" if needs_ids else "text"
        raise InvalidRequest("", f"{given} is set; this prompt needs {expected}", response=index)
    return wanted


def _ids(ids: TokenIdsBody | TokenIds | None) -> TokenIds | None:
    return ids.ids if isinstance(ids, TokenIdsBody) else ids


def _either(value: Any, camel: Any, path: str) -> Any:
    if value is not None and camel is not None:
        raise InvalidRequest(path, "it is given twice, in snake_case and in camelCase")
    return camel if value is None else value


async def to_pairs(pairs: Sequence[PairBody | tuple[int, int]]) -> list[tuple[int, int]]:
    """Return pairs of indices. Built in slices, see `in_slices`."""
    converted: list[tuple[int, int]] = []
    async for part in in_slices(pairs, CHEAP_SLICE_ITEMS):
        converted += [p if isinstance(p, tuple) else (p.first, p.second) for p in part]
    return converted


# Replies


class RewardBody(msgspec.Struct, kw_only=True):
    """kwise.v1.Reward. With `error`, the response was not scored: value and raw are null."""

    value: float | None = None
    raw: float | None = None
    tokens: int = 0
    dropped_tokens: int = 0
    control_tokens: int = 0
    cached: bool = False
    error: ErrorDetail | UnsetType = UNSET


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
    """Return the body of a scored group. Built in slices, see `in_slices`."""
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
    """Return the body of a compared group. Built in slices, see `in_slices`."""
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
    )


def _from_comparison(comparison: Comparison) -> ComparisonBody:
    return ComparisonBody(
        pair=PairReply(first=comparison.first, second=comparison.second),
        margin=comparison.margin if comparison.error is None else None,
        win_probability=comparison.win_probability if comparison.error is None else None,
        error=UNSET if comparison.error is None else _from_error(comparison.error),
    )


def _from_error(error: KwiseError) -> ErrorDetail:
    return ErrorDetail(code=error.status.name, message=str(error), response=error.response)
