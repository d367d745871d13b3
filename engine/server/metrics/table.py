"""The table of metrics. docs/monitoring.md describes them, and a test compares the two.

Rewards and lengths are those of rewards that were computed. A reward that comes from a cache again
is counted as a hit and nothing else.
"""

from kwise.engine.cache_usage import CacheUsage
from kwise.engine.server.metrics.metric import (
    Kind,
    Metric,
    Sum,
    by_label,
    counter,
    gauge,
    histogram,
)
from kwise.engine.server.metrics.observed import ObservedModel
from kwise.engine.statistics.group_times import Duration
from kwise.engine.statistics.reward_statistics import RewardStatistics


def _sum(duration: Duration) -> Sum:
    return Sum(count=duration.count, total=duration.total_s)


def _recent(rewards: RewardStatistics, value: float) -> float | None:
    """Return a mean of recent rewards; None before the first, where 0 would look like a reward."""
    return None if rewards.is_empty else value


def _prompt_caches(name: str, meaning: str, field: str) -> Metric:
    """Return a gauge with one sample per device."""

    def value(usage: CacheUsage) -> float:
        number: int = getattr(usage, field)
        return number

    def read(model: ObservedModel) -> list[tuple[tuple[str, ...], float]]:
        caches = enumerate(model.state.prompt_caches)
        return [((str(device),), value(usage)) for device, usage in caches]

    return Metric(name=name, kind=Kind.GAUGE, help=meaning, labels=("device",), read=read)


_REQUESTS = (
    by_label(
        "kwise_groups_total",
        Kind.COUNTER,
        "Groups: answered from a cache, answered with work of the model, or failed.",
        "result",
        cached=lambda m: m.counters.cached_groups,
        computed=lambda m: m.counters.answered_groups - m.counters.cached_groups,
        failed=lambda m: m.counters.failed_groups,
    ),
    counter(
        "kwise_rejected_groups_total",
        "Groups refused because the queue was full.",
        lambda m: m.counters.rejected_groups,
    ),
    histogram(
        "kwise_group_duration_seconds",
        "Time from arrival to reply of groups that cost work of the model.",
        lambda m: m.counters.groups.computed,
    ),
    by_label(
        "kwise_cache_lookup_seconds",
        Kind.SUMMARY,
        "Time to hash a group and to look it up; a hit is a group that needs no more than that.",
        "result",
        hit=lambda m: _sum(m.counters.groups.cache_hit),
        miss=lambda m: _sum(m.counters.groups.cache_miss),
    ),
)

_QUEUE = (
    gauge(
        "kwise_queue_tokens",
        "Tokens of the rewards that wait; an estimate for text that is not tokenised yet.",
        lambda m: m.state.queue_tokens,
    ),
    gauge(
        "kwise_queue_max_tokens",
        "Limit of kwise_queue_tokens, beyond which groups are refused.",
        lambda m: m.state.max_queue_tokens,
    ),
    gauge(
        "kwise_queue_sequences",
        "Conversations that wait for a batch.",
        lambda m: m.state.queue_sequences,
    ),
    gauge(
        "kwise_rewards_in_flight",
        "Rewards that wait or are being computed.",
        lambda m: m.state.rewards_in_flight,
    ),
    histogram(
        "kwise_queue_wait_seconds",
        "Time that a tokenised conversation waited for its batch.",
        lambda m: m.counters.rewards.queue_s,
    ),
    counter(
        "kwise_abandoned_sequences_total",
        "Conversations that left the queue because no request waited for them any longer.",
        lambda m: m.counters.abandoned,
    ),
)

_MODEL = (
    histogram(
        "kwise_batch_rows",
        "Token rows of a pass of the model, padding included.",
        lambda m: m.counters.passes.rows,
    ),
    histogram(
        "kwise_batch_sequences",
        "Conversations of a pass of the model.",
        lambda m: m.counters.passes.sequences,
    ),
    histogram(
        "kwise_pass_duration_seconds",
        "Time of a pass of the model.",
        lambda m: m.counters.passes.seconds,
    ),
    counter(
        "kwise_rows_total",
        "Token rows that the model computed, padding included.",
        lambda m: m.counters.rows,
    ),
    counter(
        "kwise_unshared_rows_total",
        "Tokens of the same conversations: the rows without shared prefixes and without padding.",
        lambda m: m.counters.unshared_rows,
    ),
    counter(
        "kwise_reused_rows_total",
        "Token rows that were not computed because the prompt cache had them.",
        lambda m: m.counters.reused_rows,
    ),
    counter(
        "kwise_busy_seconds_total",
        "Time in which the model ran, summed over devices.",
        lambda m: m.counters.busy_s,
    ),
    counter(
        "kwise_idle_with_work_seconds_total",
        "Time in which work waited and a device was free.",
        lambda m: m.counters.idle_with_work_s,
    ),
    gauge(
        "kwise_devices",
        "Devices that compute.",
        lambda m: m.info.num_devices,
    ),
    counter(
        "kwise_failed_sequences_total",
        "Conversations on which the runtime failed, or whose reward was not finite.",
        lambda m: m.counters.failed_sequences,
    ),
)

_CACHES = (
    counter(
        "kwise_cache_hits_total",
        "Rewards from a cache, of the process or shared.",
        lambda m: m.counters.cache_hits,
    ),
    counter(
        "kwise_cache_misses_total",
        "Rewards that no cache had; those that were joined included.",
        lambda m: m.counters.cache_misses,
    ),
    counter(
        "kwise_joined_rewards_total",
        "Rewards that another request was computing already.",
        lambda m: m.counters.joined,
    ),
    gauge(
        "kwise_cache_entries",
        "Rewards in the reward cache.",
        lambda m: m.state.reward_cache.entries,
    ),
    gauge(
        "kwise_cache_bytes",
        "Memory of the reward cache.",
        lambda m: m.state.reward_cache.num_bytes,
    ),
    gauge(
        "kwise_cache_max_bytes",
        "Limit of kwise_cache_bytes.",
        lambda m: m.state.reward_cache.max_bytes,
    ),
    _prompt_caches("kwise_prompt_cache_entries", "Prefixes in the prompt cache.", "entries"),
    _prompt_caches(
        "kwise_prompt_cache_bytes",
        "Memory of the keys and values in the prompt cache, on the device if they are there.",
        "num_bytes",
    ),
    _prompt_caches(
        "kwise_prompt_cache_max_bytes",
        "Limit of kwise_prompt_cache_bytes, as chosen for the device.",
        "max_bytes",
    ),
    by_label(
        "kwise_shared_cache_lookups_total",
        Kind.COUNTER,
        "Rewards that were looked up in Redis.",
        "result",
        hit=lambda m: m.counters.shared_hits,
        miss=lambda m: m.counters.shared_misses,
        unanswered=lambda m: m.counters.shared_unanswered,
    ),
    counter(
        "kwise_shared_cache_joined_total",
        "Rewards that another server computed and this one waited for.",
        lambda m: m.counters.shared_joined,
    ),
    by_label(
        "kwise_shared_cache_failures_total",
        Kind.COUNTER,
        "Commands to Redis that took too long or failed, and values that are not rewards.",
        "reason",
        timeout=lambda m: m.counters.shared_timeouts,
        error=lambda m: m.counters.shared_errors,
        rubbish=lambda m: m.counters.shared_rubbish,
    ),
    by_label(
        "kwise_shared_cache_stores_total",
        Kind.COUNTER,
        "Rewards that were stored in Redis, or dropped because it was slow, down or full.",
        "result",
        stored=lambda m: m.counters.shared_stored,
        dropped=lambda m: m.counters.shared_dropped,
    ),
)

_REWARDS = (
    histogram(
        "kwise_reward_value",
        "Values of the rewards that were computed, in standard deviations of the reference set.",
        lambda m: m.counters.rewards.values,
    ),
    gauge(
        "kwise_recent_reward_mean",
        "Mean of recent values; the weight halves with each 1,000 rewards that follow.",
        lambda m: _recent(m.counters.rewards, m.counters.rewards.mean_value),
    ),
    gauge(
        "kwise_recent_reward_std",
        "Standard deviation of recent values, weighted likewise.",
        lambda m: _recent(m.counters.rewards, m.counters.rewards.std_value),
    ),
    gauge(
        "kwise_recent_response_tokens",
        "Mean length of recent responses in tokens, weighted likewise.",
        lambda m: _recent(m.counters.rewards, m.counters.rewards.mean_length),
    ),
    gauge(
        "kwise_reward_length_correlation",
        "Correlation of recent values with the lengths of their responses, weighted likewise.",
        lambda m: m.counters.rewards.correlation,
    ),
    counter(
        "kwise_truncated_sequences_total",
        "Conversations from which truncation dropped turns.",
        lambda m: m.counters.truncated_sequences,
    ),
    counter(
        "kwise_dropped_tokens_total",
        "Tokens of those turns.",
        lambda m: m.counters.dropped_tokens,
    ),
    counter(
        "kwise_control_tokens_total",
        "Special tokens that the texts of responses spell out.",
        lambda m: m.counters.control_tokens,
    ),
)

METRICS: tuple[Metric, ...] = (*_REQUESTS, *_QUEUE, *_MODEL, *_CACHES, *_REWARDS)
