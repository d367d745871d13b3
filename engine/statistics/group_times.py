"""Measure the time that each group spends in each stage, and add it to totals."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from kwise.engine.statistics.histogram import SECONDS, Histogram
from kwise.types import Timing


@dataclass(slots=True, kw_only=True)
class Duration:
    """The number of events of one kind, and their total duration."""

    count: int = 0
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count an event that took `seconds`."""
        self.count += 1
        self.total_s += seconds


@dataclass(slots=True, kw_only=True)
class GroupDurations:
    """The time of all groups in each stage. A group is a request for rewards in any protocol.

    Attributes:
        success: groups that were answered, from arrival to reply.
        computed: a histogram of the answered groups that cost a pass of the model, from arrival to
            reply. Those from the cache are in `cache_hit` only, because they have no time to spare.
        failure: groups that were refused, failed or cancelled, from arrival to that moment.
        queue: the wait for a batch; all answered groups, 0 s for those from the cache.
        tokenizer: the wait for a tokenizer thread and its work; groups that were computed.
        model: the longest batch of the group; groups that were computed.
        reply: storing and assembling the rewards; groups that were computed.
        cache_hit: hashing and look-up; groups that the reward cache answered completely.
        cache_miss: hashing and look-up; the other answered groups.
        last_at_s: the arrival time of the last group, in seconds since 1970; 0 before the first.
    """

    success: Duration = field(default_factory=Duration)
    computed: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    failure: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    tokenizer: Duration = field(default_factory=Duration)
    model: Duration = field(default_factory=Duration)
    reply: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    last_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStages:
    """The moments of an answered group, on the event loop's clock, for traces.

    Attributes:
        started_s: its arrival.
        looked_up_s: the end of the look-up in the reward cache.
        computed_s: all of its rewards are there.
        replied_s: its reply is assembled.
        timing: the longest time of a response in each stage.
        is_cached: True if no reward was computed.
    """

    started_s: float
    looked_up_s: float
    computed_s: float
    replied_s: float
    timing: Timing
    is_cached: bool


# Where the stages of groups are noted that a traced call asks for. A call may ask for several.
STAGES: ContextVar[list[GroupStages] | None] = ContextVar("kwise_stages", default=None)


class GroupTimes:
    """The times of one group. They are added to the totals once the group is answered."""

    def __init__(self, totals: GroupDurations) -> None:
        self._totals = totals
        self._started_s = self._now_s()
        self._looked_up_s = self._computed_s = self._started_s
        totals.last_at_s = time.time()

    @contextmanager
    def success_or_failure(self) -> Iterator[None]:
        """Count the group as answered, or as failed if an exception is raised inside."""
        try:
            yield
        except BaseException:  # a call that is cancelled got no rewards either
            self._totals.failure.add(self._now_s() - self._started_s)
            raise
        self._totals.success.add(self._now_s() - self._started_s)

    def looked_up(self) -> None:
        """Note that the look-up in the reward cache is done."""
        self._looked_up_s = self._now_s()

    def computed(self) -> None:
        """Note that all rewards of the group are computed."""
        self._computed_s = self._now_s()

    def replied(self, timing: Timing, *, is_cached: bool, notes_stages: bool = True) -> None:
        """Add the times of an answered group. If it is cached, no reward of it was computed.

        An ensemble notes no stages for traces, because its members have noted theirs.
        """
        if notes_stages and (stages := STAGES.get()) is not None:
            stages.append(self._stages(timing, is_cached=is_cached))
        totals, look_up_s = self._totals, self._looked_up_s - self._started_s
        totals.queue.add(timing.queue_ms / 1000)
        if is_cached:
            totals.cache_hit.add(look_up_s)
            return
        totals.cache_miss.add(look_up_s)
        totals.tokenizer.add(timing.tokenizer_ms / 1000)
        totals.model.add(timing.model_ms / 1000)
        now_s = self._now_s()
        totals.reply.add(now_s - self._computed_s)
        totals.computed.observe(now_s - self._started_s)

    def _stages(self, timing: Timing, *, is_cached: bool) -> GroupStages:
        return GroupStages(
            started_s=self._started_s,
            looked_up_s=self._looked_up_s,
            computed_s=self._computed_s,
            replied_s=self._now_s(),
            timing=timing,
            is_cached=is_cached,
        )

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
