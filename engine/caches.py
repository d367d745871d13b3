"""Build the caches of an engine's rewards."""

from collections.abc import Callable
from importlib.metadata import version

from kwise.engine.cache.counters import CacheCounters
from kwise.engine.cache.redis_address import parse_redis_url
from kwise.engine.cache.reward_cache import StoredReward
from kwise.engine.cache.reward_caches import RewardCaches
from kwise.engine.cache.shared_cache import SharedCache, SharedCacheLimits
from kwise.engine.config import EngineConfig
from kwise.engine.precision import Precision
from kwise.types import Reward
from kwise.version import __version__


def reward_namespace(
    fingerprint: str,
    config: EngineConfig,
    *,
    precision: Precision,
    runtime: str,
    max_tokens: int,
) -> bytes:
    """Name everything except the conversation that a reward depends on.

    The versions of what turns a conversation into tokens are part of it, because rewards in the
    shared cache outlive the process.
    """
    return "|".join(
        (
            fingerprint,
            precision.value,
            runtime,
            str(max_tokens),
            config.overlong.value,
            config.control_tokens.value,
            f"kwise {__version__}",
            *(f"{package} {version(package)}" for package in ("tokenizers", "jinja2")),
        )
    ).encode()


def new_reward_caches(
    config: EngineConfig,
    namespace: bytes,
    counters: CacheCounters,
    to_reply: Callable[[StoredReward], Reward],
    num_members: int,
) -> RewardCaches:
    """Return the reward cache of this process, with the shared one if the options ask for it."""
    shared = None
    if config.shared_cache:
        shared = SharedCache(
            parse_redis_url(config.shared_cache, "--shared-cache"),
            SharedCacheLimits(
                look_up_s=config.shared_cache_ms / 1000,
                ttl_s=config.shared_cache_ttl_s,
                claim_s=config.shared_cache_claim_ms / 1000,
            ),
            namespace=namespace,
            counters=counters,
        )
    return RewardCaches(config.cache_bytes, shared, counters, to_reply, num_members)
