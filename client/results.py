"""What the client answers with, beside the types that it shares with the engine.

Dimensions: K responses in a group.
"""

from dataclasses import dataclass, field

from kwise.errors import KwiseError, Status
from kwise.types import Comparison, Reward, Timing


class RewardServiceError(KwiseError):
    """A call, a group or a response that the server did not score.

    One class stands for every status, because gRPC itself may set one (DEADLINE_EXCEEDED, say).

    Attributes:
        status: the gRPC status; UNKNOWN if `code` is not a name that gRPC defines.
        code: the name of the status, as the server sent it.
        message: the server's message, without code and address.
        response: the index of the response that the error is about; None if it is not about one.
        target: the server's address if a whole call failed; "" if a group or a response did.
        retry_after_s: the server's advice when to try again, in seconds; None if it gave none.
    """

    status = Status.UNKNOWN

    def __init__(
        self,
        code: str,
        message: str,
        *,
        target: str = "",
        retry_after_s: float | None = None,
        response: int | None = None,
    ) -> None:
        super().__init__(f"{code} at {target}: {message}" if target else f"{code}: {message}")
        self.status = Status.named(code)
        self.code = code
        self.message = message
        self.target = target
        self.retry_after_s = retry_after_s
        self.response = response


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedGroup:
    """`ranks[k]` belongs to response k: 1 the best, equal rewards share one, None where the reward is an error."""

    ranks: tuple[int | None, ...]
    rewards: tuple[Reward | KwiseError, ...]
    model: str
    fingerprint: str
    precision: str
    runtime: str
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedGroup:
    """One comparison per pair that was asked for, and the K rewards that they follow from."""

    comparisons: tuple[Comparison, ...]
    rewards: tuple[Reward | KwiseError, ...]
    model: str
    fingerprint: str
    precision: str
    runtime: str
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the engine has done since it started; reward.proto says what each one counts."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is served, with its limits; reward.proto describes the fields."""

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
