"""The state of an engine at one moment, for people and programs that watch it."""

from dataclasses import dataclass

from kwise.engine.cache_usage import CacheUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The queue and the caches of an engine.

    Attributes:
        queue_tokens: tokens of the rewards that wait; an estimate for text not yet tokenised.
        queue_sequences: conversations that wait for a batch.
        max_queue_tokens: the limit of `queue_tokens`, beyond which groups are refused.
        rewards_in_flight: rewards that wait or are being computed.
        reward_cache: the reward cache of this process.
        prompt_caches: the prompt cache of each device, in the order of `--device`.
    """

    queue_tokens: int
    queue_sequences: int
    max_queue_tokens: int
    rewards_in_flight: int
    reward_cache: CacheUsage
    prompt_caches: tuple[CacheUsage, ...]
