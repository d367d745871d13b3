"""The rewards and statistics of one call, and the errors that it can end with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kwise.errors import KwiseError, Status


class NotScored(KwiseError):
    """Some responses have no reward, and the caller does not accept that.

    Attributes:
        status: the status of the first error.
        errors: the errors, by the index of the response in the caller's list.
    """

    status = Status.UNKNOWN

    def __init__(self, errors: Mapping[int, KwiseError], num_responses: int) -> None:
        index, first = next(iter(errors.items()))
        detail = str(first)
        if first.response is not None:  # the server counts within its request
            detail = detail.replace(f"responses[{first.response}]", f"responses[{index}]", 1)
        super().__init__(
            f"{len(errors)} of {num_responses} responses have no reward; the first is "
            f"responses[{index}]: {detail}"
        )
        self.status = first.status
        self.response = index
        self.errors = dict(errors)


class ModelChanged(KwiseError):
    """The server serves another model than at the first call, so rewards are not comparable.

    Attributes:
        old: the fingerprint of the model that gave the first rewards of this process.
        new: the fingerprint of the model that answers now.
    """

    status = Status.FAILED_PRECONDITION

    def __init__(self, old: str, new: str, address: str) -> None:
        super().__init__(
            f"the server at {address} changed its model during the run: the fingerprint was {old} "
            f"and is {new}; to go on with the new model, set allow_model_change=True"
        )
        self.old = old
        self.new = new


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The statistics of one call.

    Attributes:
        num_rewards: the number of responses with a reward.
        num_errors: the number of responses without one.
        num_prompts: the number of distinct prompts.
        num_cached: the number of rewards that cost no pass of the model.
        num_truncated: the number of rewards of conversations whose oldest turns were dropped.
        tokens: the number of tokens of the scored conversations, prompts included.
        latency_s: the time of the call, retries included.
        queue_ms: the longest wait for a batch on the server.
        model_ms: the longest batch on the server.
        model: the name of the model; "" if no reply named it.
        fingerprint: the identity of the model, a SHA-256 in hex; "" if no reply named it.
        mean_std: the mean of the rewards' standard deviations over the members of the model; None
            if it has no members.
    """

    num_rewards: int = 0
    num_errors: int = 0
    num_prompts: int = 0
    num_cached: int = 0
    num_truncated: int = 0
    tokens: int = 0
    latency_s: float = 0.0
    queue_ms: float = 0.0
    model_ms: float = 0.0
    model: str = ""
    fingerprint: str = ""
    mean_std: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers for the metrics of a library, under the same keys for one model.

        `kwise/mean_std` is among them if the model has members.
        """
        num_rewards = max(self.num_rewards, 1)
        of_members = {} if self.mean_std is None else {"kwise/mean_std": self.mean_std}
        return {
            "kwise/latency_s": self.latency_s,
            "kwise/cached_share": self.num_cached / num_rewards,
            "kwise/truncated_share": self.num_truncated / num_rewards,
            "kwise/mean_tokens": self.tokens / num_rewards,
            "kwise/num_errors": float(self.num_errors),
            **of_members,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponses:
    """The rewards of a call.

    Attributes:
        rewards: one per response, in order; None for a response that could not be scored.
        errors: the reason of each None, by the index of the response.
        statistics: the statistics of the call.
        stds: the standard deviation of each reward over the members of the model, in the same
            order: how unsure the model is. None for a response that could not be scored, and for
            all if the model has no members.
    """

    rewards: list[float | None]
    errors: dict[int, KwiseError]
    statistics: Statistics
    stds: list[float | None] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        """The rewards of a call in which every response has one.

        Raises:
            NotScored: a response has none.
        """
        if self.errors:
            raise NotScored(self.errors, len(self.rewards))
        return [reward for reward in self.rewards if reward is not None]
