"""The reply to a group: one reward or error per response, in order."""

from collections.abc import Collection, Mapping, Sequence

from kwise.engine.artifact.manifest import Manifest
from kwise.engine.cache.reward_cache import StoredReward
from kwise.engine.schedule.in_flight import RewardInFlight
from kwise.errors import InvalidRequest, KwiseError, ModelFailed
from kwise.types import Reward, ScoredGroup, Timing


def scored_group(
    keys: Sequence[bytes],
    cached: Mapping[bytes, Reward],
    computed: Mapping[bytes, RewardInFlight],
    *,
    model: str,
    manifest: Manifest,
    precision: str,
    runtime: str,
) -> ScoredGroup:
    """Return the rewards of `keys`, each of which is cached, or computed and decided.

    Raises:
        InvalidRequest: the group as a whole is why no response can be scored.
        ModelFailed: the runtime failed on every response.
        KwiseError: what else a reward in flight raised, which is never one response's.
    """
    rewards: list[Reward | KwiseError] = []
    seen: set[bytes] = set()
    for index, key in enumerate(keys):
        if (reward := cached.get(key)) is not None:
            rewards.append(reward)
        elif isinstance(outcome := _outcome(computed[key]), KwiseError):
            # It may have been started by a request in which the response had another index.
            rewards.append(outcome.at(index))
        else:
            # A response that stands twice in the request is computed once.
            is_cached = key in seen or computed[key].received is not None
            rewards.append(reward_of(outcome, manifest, is_cached=is_cached))
            seen.add(key)
    _raise_for_group(rewards)
    return ScoredGroup(
        rewards=tuple(rewards),
        model=model,
        fingerprint=manifest.fingerprint,
        precision=precision,
        runtime=runtime,
        timing=_slowest(computed.values()),
    )


def reward_of(stored: StoredReward, manifest: Manifest, *, is_cached: bool) -> Reward:
    """Return a reward as a reply has it: normalised as the manifest says."""
    return manifest.reward(
        stored.raw,
        tokens=stored.tokens,
        dropped_tokens=stored.dropped_tokens,
        control_tokens=stored.control_tokens,
        cached=is_cached,
    )


def _outcome(reward: RewardInFlight) -> StoredReward | InvalidRequest | ModelFailed:
    """Return the reward, or the error that may be one response's. Other errors are raised."""
    error = reward.future.exception()
    return error if isinstance(error, InvalidRequest | ModelFailed) else reward.stored


def _raise_for_group(rewards: Sequence[Reward | KwiseError]) -> None:
    """Fail the call if no response was scored and none of them is the cause."""
    errors = [reward for reward in rewards if isinstance(reward, KwiseError)]
    if len(errors) == len(rewards) and not any(_is_of_response(error) for error in errors):
        raise ModelFailed() if isinstance(errors[0], ModelFailed) else errors[0]


def _is_of_response(error: KwiseError) -> bool:
    return isinstance(error, InvalidRequest) and error.response is not None


def _slowest(rewards: Collection[RewardInFlight]) -> Timing:
    return Timing(
        tokenizer_ms=1000 * max((reward.tokenizer_s for reward in rewards), default=0.0),
        queue_ms=1000 * max((reward.queue_s for reward in rewards), default=0.0),
        model_ms=1000 * max((reward.model_s for reward in rewards), default=0.0),
    )
