"""The data that crosses the boundaries between modules: groups of responses in, rewards out.

Plain dataclasses that import the standard library only, so that client, server and engine share
them.

Dimensions: K responses in a group.
"""

import math
from dataclasses import dataclass, field
from enum import Enum

from kwise.errors import KwiseError


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system", "user", "assistant", or another role that the chat template knows.
        content: the text.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplatedText:
    """A text with the chat template applied, which the responses follow directly.

    It is tokenised as it is, special tokens included, and is made to begin and end as the
    template's conversations do: a first token (BOS) that is missing is added, one too many is
    removed, and the end of the assistant's turn is completed. So a rollout that was decoded from
    token ids gets the reward of its messages.

    Attributes:
        text: the prompt, up to where the response begins; "" if the responses have all of it.
    """

    text: str


Conversation = tuple[Message, ...]
TokenIds = tuple[int, ...]

# The key of the metadata that names the client of a call. See `client` in `Group`.
CLIENT_KEY = "kwise-client"

# The key of the metadata that names the model, in protocols whose messages cannot name it.
MODEL_KEY = "kwise-model"


class Priority(Enum):
    """The importance of a group. Bulk groups wait behind interactive ones, except a few."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """K responses to one prompt.

    Errors of the engine name a field by its name in this class.

    Attributes:
        prompt: a conversation, or a text or token ids with the chat template applied.
        responses: K sequences of token ids if the prompt is token ids, K texts otherwise.
        priority: the importance of the group.
        client: the client that asks. The server shares its time evenly among clients.
    """

    prompt: Conversation | TemplatedText | TokenIds
    responses: tuple[str, ...] | tuple[TokenIds, ...]
    priority: Priority = Priority.INTERACTIVE
    client: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """The reward of one response.

    A model with members (several heads, or several models) scores a response once per member. Each
    member's raw reward is normalised by its own mean and std; see `kwise.engine.artifact.members`.

    Attributes:
        value: (raw - mean) / std, with the artifact's normalisation; the mean of `members`, if the
            model has members.
        raw: the output of the model's head; the mean of the members' outputs.
        tokens: the length of the scored conversation, after truncation.
        dropped_tokens: the number of tokens that truncation took from the prompt.
        control_tokens: the number of special tokens that the response's own text spells out.
        cached: True if the reward cost no pass of the model in this call.
        std: the population standard deviation of `members`; None for a model without members.
        min: the smallest of `members`; None for a model without members.
        members: the value of each member, in order; empty for a model without members.
    """

    value: float
    raw: float
    tokens: int
    dropped_tokens: int = 0
    control_tokens: int = 0
    cached: bool = False
    std: float | None = None
    min: float | None = None
    members: tuple[float, ...] = ()


RawReward = float | tuple[float, ...]
"""The output of a model's head; one number per member, if the model has members."""


# The bounds of the mean and the std by which a reward is normalised. Within them, no value of a
# float32 reward overflows, and neither does its square in a standard deviation over members.
MIN_STD, MAX_SCALE = 1e-30, 1e38


def value_formula(mean: float, std: float) -> str:
    """Return how the value is computed from the raw reward, for a reader: "(raw - 0.5) / 2"."""
    return f"(raw {'+' if mean < 0 else '-'} {abs(mean):.6g}) / {std:.6g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The time of each stage of a group, in milliseconds. All are 0 if every reward was cached.

    Attributes:
        tokenizer_ms: from the wait for a tokenizer thread until the token ids exist.
        queue_ms: the longest wait of a response for its batch.
        model_ms: the longest batch that a response of the group was part of.
    """

    tokenizer_ms: float = 0.0
    queue_ms: float = 0.0
    model_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """The rewards of a group, all from one artifact.

    Attributes:
        rewards: one per response, in order. A response that was not scored has its error here.
        model: the name of the model.
        fingerprint: the identity of the model, a SHA-256 in hex.
        precision: the precision of the matrix products ("fp32", "fp16", "bf16" or "int8").
        runtime: the library and the device that computed the rewards.
        timing: where the time went.
    """

    rewards: tuple[Reward | KwiseError, ...]
    model: str
    fingerprint: str
    precision: str
    runtime: str
    timing: Timing = field(default_factory=Timing)

    @property
    def values(self) -> tuple[float | None, ...]:
        """The value of each reward, in order; None for a response that was not scored."""
        return tuple(r.value if isinstance(r, Reward) else None for r in self.rewards)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedGroup(ScoredGroup):
    """The rewards of a group and the ranks that follow from them.

    Attributes:
        ranks: one per response, in order. 1 is the best, equal rewards share a rank, and a response
            without a reward has None.
    """

    ranks: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One pair of responses of a group.

    Attributes:
        first: the index of a response.
        second: the index of a response.
        margin: the raw reward of `first` minus the raw reward of `second`; NaN with an error.
        win_probability: sigmoid(margin), the probability that `first` is preferred; NaN with an
            error.
        error: why one of the two responses has no reward; None if both have one.
    """

    first: int
    second: int
    margin: float = math.nan
    win_probability: float = math.nan
    error: KwiseError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedGroup(ScoredGroup):
    """The rewards of a group and the comparisons that follow from them.

    Attributes:
        comparisons: one per pair that was asked for, in order.
    """

    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Work that an engine has done since it started. reward.proto describes each counter."""

    model_passes: int
    sequences: int
    rows: int
    unshared_rows: int
    reused_rows: int
    cache_hits: int
    joined: int
    rejected_groups: int
    abandoned: int
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The model that a server serves, and its limits. reward.proto describes the fields."""

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
    num_members: int = 1
    member_means: tuple[float, ...] = ()
    member_stds: tuple[float, ...] = ()
    queue_tokens: int
    queue_sequences: int
    max_queue_tokens: int
    num_devices: int
