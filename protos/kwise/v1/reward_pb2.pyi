from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BULK: Priority

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "messages", "token_ids", "templated_text")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEMPLATED_TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    messages: Conversation
    token_ids: TokenIds
    templated_text: str
    def __init__(self, text: _Optional[str] = ..., messages: _Optional[_Union[Conversation, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., templated_text: _Optional[str] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("model", "prompt", "responses", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: Prompt
    responses: _containers.RepeatedCompositeFieldContainer[Response]
    priority: Priority
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., responses: _Optional[_Iterable[_Union[Response, _Mapping]]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class ScoredGroup(_message.Message):
    __slots__ = ("rewards", "model", "fingerprint", "precision", "runtime", "timing")
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    rewards: _containers.RepeatedCompositeFieldContainer[Reward]
    model: str
    fingerprint: str
    precision: str
    runtime: str
    timing: Timing
    def __init__(self, rewards: _Optional[_Iterable[_Union[Reward, _Mapping]]] = ..., model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., precision: _Optional[str] = ..., runtime: _Optional[str] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class Reward(_message.Message):
    __slots__ = ("value", "raw", "tokens", "dropped_tokens", "control_tokens", "cached", "error", "std", "min", "members")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    value: float
    raw: float
    tokens: int
    dropped_tokens: int
    control_tokens: int
    cached: bool
    error: Error
    std: float
    min: float
    members: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, value: _Optional[float] = ..., raw: _Optional[float] = ..., tokens: _Optional[int] = ..., dropped_tokens: _Optional[int] = ..., control_tokens: _Optional[int] = ..., cached: bool = ..., error: _Optional[_Union[Error, _Mapping]] = ..., std: _Optional[float] = ..., min: _Optional[float] = ..., members: _Optional[_Iterable[float]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms", "response", "over_limit")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    OVER_LIMIT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retry_after_ms: int
    response: int
    over_limit: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., response: _Optional[int] = ..., over_limit: bool = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("tokenizer_ms", "queue_ms", "model_ms")
    TOKENIZER_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_MS_FIELD_NUMBER: _ClassVar[int]
    tokenizer_ms: float
    queue_ms: float
    model_ms: float
    def __init__(self, tokenizer_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., model_ms: _Optional[float] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("group",)
    GROUP_FIELD_NUMBER: _ClassVar[int]
    group: Group
    def __init__(self, group: _Optional[_Union[Group, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scored",)
    SCORED_FIELD_NUMBER: _ClassVar[int]
    scored: ScoredGroup
    def __init__(self, scored: _Optional[_Union[ScoredGroup, _Mapping]] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("group",)
    GROUP_FIELD_NUMBER: _ClassVar[int]
    group: Group
    def __init__(self, group: _Optional[_Union[Group, _Mapping]] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("scored", "ranks")
    SCORED_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    scored: ScoredGroup
    ranks: _containers.RepeatedCompositeFieldContainer[Rank]
    def __init__(self, scored: _Optional[_Union[ScoredGroup, _Mapping]] = ..., ranks: _Optional[_Iterable[_Union[Rank, _Mapping]]] = ...) -> None: ...

class Rank(_message.Message):
    __slots__ = ("rank",)
    RANK_FIELD_NUMBER: _ClassVar[int]
    rank: int
    def __init__(self, rank: _Optional[int] = ...) -> None: ...

class Pair(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: int
    second: int
    def __init__(self, first: _Optional[int] = ..., second: _Optional[int] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("group", "pairs")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    group: Group
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    def __init__(self, group: _Optional[_Union[Group, _Mapping]] = ..., pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ...) -> None: ...

class CompareResponse(_message.Message):
    __slots__ = ("scored", "comparisons")
    SCORED_FIELD_NUMBER: _ClassVar[int]
    COMPARISONS_FIELD_NUMBER: _ClassVar[int]
    scored: ScoredGroup
    comparisons: _containers.RepeatedCompositeFieldContainer[Comparison]
    def __init__(self, scored: _Optional[_Union[ScoredGroup, _Mapping]] = ..., comparisons: _Optional[_Iterable[_Union[Comparison, _Mapping]]] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("pair", "margin", "win_probability", "error")
    PAIR_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    WIN_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    pair: Pair
    margin: float
    win_probability: float
    error: Error
    def __init__(self, pair: _Optional[_Union[Pair, _Mapping]] = ..., margin: _Optional[float] = ..., win_probability: _Optional[float] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class ScoreStreamRequest(_message.Message):
    __slots__ = ("id", "group")
    ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    id: str
    group: Group
    def __init__(self, id: _Optional[str] = ..., group: _Optional[_Union[Group, _Mapping]] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("id", "scored", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    scored: ScoredGroup
    error: Error
    def __init__(self, id: _Optional[str] = ..., scored: _Optional[_Union[ScoredGroup, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "fingerprint", "layout", "precision", "runtime", "max_tokens", "max_batch_tokens", "overlong", "control_tokens", "reward_mean", "reward_std", "counters", "max_responses", "max_pairs", "num_members", "member_means", "member_stds", "queue_tokens", "queue_sequences", "max_queue_tokens", "num_devices")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OVERLONG_FIELD_NUMBER: _ClassVar[int]
    CONTROL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REWARD_MEAN_FIELD_NUMBER: _ClassVar[int]
    REWARD_STD_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSES_FIELD_NUMBER: _ClassVar[int]
    MAX_PAIRS_FIELD_NUMBER: _ClassVar[int]
    NUM_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    MEMBER_MEANS_FIELD_NUMBER: _ClassVar[int]
    MEMBER_STDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_DEVICES_FIELD_NUMBER: _ClassVar[int]
    model: str
    fingerprint: str
    layout: str
    precision: str
    runtime: str
    max_tokens: int
    max_batch_tokens: int
    overlong: str
    control_tokens: str
    reward_mean: float
    reward_std: float
    counters: Counters
    max_responses: int
    max_pairs: int
    num_members: int
    member_means: _containers.RepeatedScalarFieldContainer[float]
    member_stds: _containers.RepeatedScalarFieldContainer[float]
    queue_tokens: int
    queue_sequences: int
    max_queue_tokens: int
    num_devices: int
    def __init__(self, model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., layout: _Optional[str] = ..., precision: _Optional[str] = ..., runtime: _Optional[str] = ..., max_tokens: _Optional[int] = ..., max_batch_tokens: _Optional[int] = ..., overlong: _Optional[str] = ..., control_tokens: _Optional[str] = ..., reward_mean: _Optional[float] = ..., reward_std: _Optional[float] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., max_responses: _Optional[int] = ..., max_pairs: _Optional[int] = ..., num_members: _Optional[int] = ..., member_means: _Optional[_Iterable[float]] = ..., member_stds: _Optional[_Iterable[float]] = ..., queue_tokens: _Optional[int] = ..., queue_sequences: _Optional[int] = ..., max_queue_tokens: _Optional[int] = ..., num_devices: _Optional[int] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("model_passes", "sequences", "rows", "unshared_rows", "cache_hits", "joined", "rejected_groups", "abandoned", "reused_rows", "busy_s", "idle_with_work_s", "shared_hits", "shared_misses", "shared_unanswered", "shared_joined", "shared_timeouts", "shared_errors", "shared_rubbish", "shared_stored", "shared_dropped", "answered_groups", "cached_groups", "failed_groups", "cache_misses", "truncated_sequences", "dropped_tokens", "control_tokens", "failed_sequences")
    MODEL_PASSES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    UNSHARED_ROWS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    REUSED_ROWS_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_WITH_WORK_S_FIELD_NUMBER: _ClassVar[int]
    SHARED_HITS_FIELD_NUMBER: _ClassVar[int]
    SHARED_MISSES_FIELD_NUMBER: _ClassVar[int]
    SHARED_UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    SHARED_JOINED_FIELD_NUMBER: _ClassVar[int]
    SHARED_TIMEOUTS_FIELD_NUMBER: _ClassVar[int]
    SHARED_ERRORS_FIELD_NUMBER: _ClassVar[int]
    SHARED_RUBBISH_FIELD_NUMBER: _ClassVar[int]
    SHARED_STORED_FIELD_NUMBER: _ClassVar[int]
    SHARED_DROPPED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    CACHED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    FAILED_GROUPS_FIELD_NUMBER: _ClassVar[int]
    CACHE_MISSES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FAILED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    model_passes: int
    sequences: int
    rows: int
    unshared_rows: int
    cache_hits: int
    joined: int
    rejected_groups: int
    abandoned: int
    reused_rows: int
    busy_s: float
    idle_with_work_s: float
    shared_hits: int
    shared_misses: int
    shared_unanswered: int
    shared_joined: int
    shared_timeouts: int
    shared_errors: int
    shared_rubbish: int
    shared_stored: int
    shared_dropped: int
    answered_groups: int
    cached_groups: int
    failed_groups: int
    cache_misses: int
    truncated_sequences: int
    dropped_tokens: int
    control_tokens: int
    failed_sequences: int
    def __init__(self, model_passes: _Optional[int] = ..., sequences: _Optional[int] = ..., rows: _Optional[int] = ..., unshared_rows: _Optional[int] = ..., cache_hits: _Optional[int] = ..., joined: _Optional[int] = ..., rejected_groups: _Optional[int] = ..., abandoned: _Optional[int] = ..., reused_rows: _Optional[int] = ..., busy_s: _Optional[float] = ..., idle_with_work_s: _Optional[float] = ..., shared_hits: _Optional[int] = ..., shared_misses: _Optional[int] = ..., shared_unanswered: _Optional[int] = ..., shared_joined: _Optional[int] = ..., shared_timeouts: _Optional[int] = ..., shared_errors: _Optional[int] = ..., shared_rubbish: _Optional[int] = ..., shared_stored: _Optional[int] = ..., shared_dropped: _Optional[int] = ..., answered_groups: _Optional[int] = ..., cached_groups: _Optional[int] = ..., failed_groups: _Optional[int] = ..., cache_misses: _Optional[int] = ..., truncated_sequences: _Optional[int] = ..., dropped_tokens: _Optional[int] = ..., control_tokens: _Optional[int] = ..., failed_sequences: _Optional[int] = ...) -> None: ...
