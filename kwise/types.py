"""What crosses the boundaries between modules: conversations in, rewards out. Plain data, standard library only, so
that the client and the engine share it.

Dimensions: K responses in a group.
"""

import math
from dataclasses import dataclass, field
from enum import Enum

from kwise.errors import KwiseError


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `role` is "system", "user", "assistant" or what else the chat template knows."""

    role: str
    content: str


Conversation = tuple[Message, ...]
TokenIds = tuple[int, ...]


# Metadata of a call: the name of the client that it is for.
CLIENT_KEY = "kwise-client"


class Priority(Enum):
    """Which line a group waits in. Bulk work yields to interactive work, but for a small share."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """K responses to one prompt.

    A prompt is a conversation or token ids (chat template applied); the responses are then texts or token ids
    respectively. `InvalidRequest` from the engine names a field by these names. `client`: who asks; clients take turns.
    """

    prompt: Conversation | TokenIds
    responses: tuple[str, ...] | tuple[TokenIds, ...]
    priority: Priority = Priority.INTERACTIVE
    client: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """The reward of one (prompt, response).

    `value` is (raw − mean) / std with the artifact's normalisation and `raw` the head's output; `tokens` is the length
    of the scored conversation, `dropped_tokens` what the length policy took from its prompt, `control_tokens` how many
    special tokens the response's own text spells out. `cached`: no pass of the model was needed for it.
    """

    value: float
    raw: float
    tokens: int
    dropped_tokens: int = 0
    control_tokens: int = 0
    cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where a group's time went, in milliseconds; `queue_ms` and `model_ms` are those of its slowest response."""

    tokenizer_ms: float = 0.0
    queue_ms: float = 0.0
    model_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """The answer to a group: one outcome per response, in order, all from the artifact named by `fingerprint`.

    A response that could not be scored has its error in its place. precision, runtime: what computed the rewards.
    """

    rewards: tuple[Reward | KwiseError, ...]
    model: str
    fingerprint: str
    precision: str
    runtime: str
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One pair of a group: `margin` = raw(first) − raw(second), `win_probability` = σ(margin).

    `error` is set, and the numbers are none (NaN), where one of the two has no reward.
    """

    first: int
    second: int
    margin: float = math.nan
    win_probability: float = math.nan
    error: KwiseError | None = None
