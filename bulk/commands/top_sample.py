"""The rows of `kwise top`: rates and shares of an interval, from two readings of the counters."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from kwise.types import Counters, ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A reading of a server's counters, with its time on the clock of `time.monotonic`."""

    info: ModelInfo
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The work of one interval, and what waits at its end.

    A number is None if the interval does not tell it: a share of nothing, or the work before and
    after a restart of the server.

    Attributes:
        model, fingerprint, precision, runtime: what is served.
        interval_s: the time between the two readings; 0 for a single one.
        groups_per_s: groups that were answered.
        cached_groups: the share of them that cost no pass of the model.
        failed_groups_per_s: groups that were refused, failed or cancelled.
        rejected_groups_per_s: those of them that the full queue refused.
        rewards_per_s: rewards, from a cache or computed.
        cached_rewards: the share of them that came from a cache.
        joined_rewards: the share of them that another request's pass computed.
        passes_per_s: batches of the model.
        batch_sequences: conversations of a batch, on average.
        batch_rows: token rows of a batch, on average.
        tokens_per_s: tokens of the conversations that were computed, shared ones counted each time.
        saved_rows: the share of these tokens that cost no row of the model. Negative if padding
            costs more than sharing saves.
        reused_rows: the share of them that the prompt cache had.
        busy: the share of the time in which the devices computed. Time counts when a pass ends, so
            a short interval may have more than 1.
        idle_with_work: the share of the time in which work waited and a device was free.
        devices: the number of devices.
        queue_tokens, max_queue_tokens, queue_sequences: what waits now, and its limit.
        total_rejected_groups, total_failed_sequences, total_truncated_sequences: since the start.
    """

    model: str
    fingerprint: str
    precision: str
    runtime: str
    interval_s: float
    groups_per_s: float | None
    cached_groups: float | None
    failed_groups_per_s: float | None
    rejected_groups_per_s: float | None
    rewards_per_s: float | None
    cached_rewards: float | None
    joined_rewards: float | None
    passes_per_s: float | None
    batch_sequences: float | None
    batch_rows: float | None
    tokens_per_s: float | None
    saved_rows: float | None
    reused_rows: float | None
    busy: float | None
    idle_with_work: float | None
    devices: int
    queue_tokens: int
    max_queue_tokens: int
    queue_sequences: int
    total_rejected_groups: int
    total_failed_sequences: int
    total_truncated_sequences: int


def sample_of(before: Reading, after: Reading) -> Sample:
    """Return the sample of the interval between two readings."""
    info, interval_s = after.info, after.at_s - before.at_s
    old, new = before.info.counters, info.counters
    work = _Work(old, new)
    # Counters that fall are those of a new process. Its work so far is not of this interval.
    seconds = 0.0 if work.has_restarted else interval_s
    rewards = work["cache_hits"] + work["cache_misses"]
    tokens = work["unshared_rows"]
    device_s = seconds * info.num_devices
    saved = _share(work["rows"], tokens)
    return Sample(
        model=info.model,
        fingerprint=info.fingerprint,
        precision=info.precision,
        runtime=info.runtime,
        interval_s=interval_s,
        groups_per_s=_share(work["answered_groups"], seconds),
        cached_groups=_share(work["cached_groups"], work["answered_groups"]),
        failed_groups_per_s=_share(work["failed_groups"], seconds),
        rejected_groups_per_s=_share(work["rejected_groups"], seconds),
        rewards_per_s=_share(rewards, seconds),
        cached_rewards=_share(work["cache_hits"], rewards),
        joined_rewards=_share(work["joined"], rewards),
        passes_per_s=_share(work["model_passes"], seconds),
        batch_sequences=_share(work["sequences"], work["model_passes"]),
        batch_rows=_share(work["rows"], work["model_passes"]),
        tokens_per_s=_share(tokens, seconds),
        saved_rows=None if saved is None else 1 - saved,
        reused_rows=_share(work["reused_rows"], tokens),
        busy=_share(work["busy_s"], device_s),
        idle_with_work=_share(work["idle_with_work_s"], device_s),
        devices=info.num_devices,
        queue_tokens=info.queue_tokens,
        max_queue_tokens=info.max_queue_tokens,
        queue_sequences=info.queue_sequences,
        total_rejected_groups=new.rejected_groups,
        total_failed_sequences=new.failed_sequences,
        total_truncated_sequences=new.truncated_sequences,
    )


class _Work:
    """The increase of each counter; 0 of each if the server has restarted meanwhile."""

    def __init__(self, before: Counters, after: Counters) -> None:
        names = [field.name for field in fields(Counters)]
        self._changes = {name: getattr(after, name) - getattr(before, name) for name in names}
        self.has_restarted = any(change < 0 for change in self._changes.values())

    def __getitem__(self, name: str) -> float:
        return 0 if self.has_restarted else self._changes[name]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def facts_of(sample: Sample) -> Mapping[str, str]:
    """Return the lines that show a sample, by name."""
    devices = f"{sample.devices} device{'' if sample.devices == 1 else 's'}"
    return {
        "groups": f"{_rate(sample.groups_per_s)}, {_percent(sample.cached_groups)} from the cache, "
        f"{_rate(sample.failed_groups_per_s)} failed",
        "rewards": f"{_rate(sample.rewards_per_s)}, {_percent(sample.cached_rewards)} from the "
        f"cache, {_percent(sample.joined_rewards)} joined",
        "queue": f"{sample.queue_tokens:,} of {sample.max_queue_tokens:,} tokens, "
        f"{sample.queue_sequences:,} conversations",
        "model": f"{_percent(sample.busy)} busy, {_percent(sample.idle_with_work)} idle with work, "
        f"{devices}",
        "batches": f"{_rate(sample.passes_per_s)}, {_mean(sample.batch_sequences)} conversations "
        f"and {_mean(sample.batch_rows)} rows each",
        "tokens": f"{_rate(sample.tokens_per_s)}, {_percent(sample.saved_rows)} of the rows saved, "
        f"{_percent(sample.reused_rows)} by the prompt cache",
        "refused": f"{_rate(sample.rejected_groups_per_s)}, "
        f"{sample.total_rejected_groups:,} groups since the start",
        "conversations": f"{sample.total_failed_sequences:,} failed, "
        f"{sample.total_truncated_sequences:,} truncated since the start",
    }


def _rate(value: float | None) -> str:
    return "- /s" if value is None else f"{value:,.1f} /s"


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
