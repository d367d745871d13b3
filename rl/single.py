"""Score one response at a time, for libraries that score a sample when its rollout ends."""

from dataclasses import dataclass

from kwise.client.messages import PromptLike
from kwise.rl.result import ScoredResponses
from kwise.rl.scoring import Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponse:
    """The reward of one response.

    Attributes:
        reward: the reward.
        metrics: the numbers for the metrics of the library, under the same keys for one model. If
            the model has members, `kwise/mean_std` is the standard deviation of this reward.
    """

    reward: float
    metrics: dict[str, float]


def score_one(scoring: Scoring, prompt: PromptLike, response: str) -> ScoredResponse:
    """Return the reward of one response.

    Raises:
        NotScored, ModelChanged, RewardServiceError, InvalidRequest, TypeError, ValueError: see
            `Scoring.score`.
    """
    return _only(scoring.score([prompt], [response]))


async def score_one_async(scoring: Scoring, prompt: PromptLike, response: str) -> ScoredResponse:
    """Return the reward of one response, as `score_one`, on the running event loop."""
    return _only(await scoring.score_async([prompt], [response]))


def _only(scored: ScoredResponses) -> ScoredResponse:
    (reward,) = scored.values
    return ScoredResponse(reward=reward, metrics=scored.statistics.metrics)
