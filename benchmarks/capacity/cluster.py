"""Replicas behind a router on simulated time, with autoscaling and the loss of replicas.

A call goes to the replica that the router picks. If its queue is full, the call comes again after
the pause that the replica advises. If the replica dies, the call goes to another one after a short
pause, as kwise's client sends it.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any

import simpy

from kwise.benchmarks.capacity.load import Call, Load
from kwise.benchmarks.capacity.replica import Replica, ReplicaConfig, ReplicaCounters
from kwise.benchmarks.capacity.routers import ROUTERS
from kwise.errors import Overloaded

_RETRY_PAUSE_S = 0.2  # the client's first pause after a server that is away


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """Adds replicas by the tokens that wait, as Ray Serve does by the requests that wait.

    Attributes:
        target_tokens: pending tokens per replica; more replicas start if the mean is above.
        every_s: the time between two decisions.
        lag_s: the time from the decision until a replica serves: a machine, the image, the weights.
        max_replicas: no more than these.
    """

    target_tokens: int
    every_s: float = 10.0
    lag_s: float = 60.0
    max_replicas: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The replicas and how they are managed.

    Attributes:
        replicas: how many serve at the start.
        replica: their speed and limits.
        router: a name from `ROUTERS`.
        autoscaling: None for a fixed number.
        losses_s: the times at which a replica with work dies for good.
    """

    replicas: int
    replica: ReplicaConfig
    router: str
    autoscaling: Autoscaling | None = None
    losses_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredCall:
    """The arrival of a call, its latency, and how often it was sent again."""

    arrives_s: float
    seconds: float
    retries: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The result of a simulation.

    Attributes:
        calls: every call, in order of its answer.
        counters: of each replica that ever served.
        replicas: (time, number of replicas that serve) at each change.
        ended_s: when the last call was answered.
    """

    calls: list[AnsweredCall] = field(default_factory=list)
    counters: list[ReplicaCounters] = field(default_factory=list)
    replicas: list[tuple[float, int]] = field(default_factory=list)
    ended_s: float = 0.0

    def latencies(self, from_s: float = 0.0, to_s: float = float("inf")) -> list[float]:
        """Return the seconds of the calls that came in an interval, ascending."""
        return sorted(c.seconds for c in self.calls if from_s <= c.arrives_s < to_s)

    def total(self, name: str) -> float:
        """Return a counter's sum over all replicas."""
        return float(sum(getattr(counters, name) for counters in self.counters))


def simulate(load: Load, fleet: Fleet) -> Outcome:
    """Run the load through the fleet until every call is answered."""
    return _Cluster(load, fleet).run()


def quantile(ascending: list[float], share: float) -> float:
    """Return the value below which `share` of the values lie; NaN of none."""
    if not ascending:
        return float("nan")
    return ascending[min(int(share * len(ascending)), len(ascending) - 1)]


class _Cluster:
    def __init__(self, load: Load, fleet: Fleet) -> None:
        self._load = load
        self._fleet = fleet
        self._env = simpy.Environment()
        self._rng = Random(load.seed)
        self._pick = ROUTERS[fleet.router](self._rng)
        self._outcome = Outcome()
        self._replicas: list[Replica] = []
        self._num_starting = 0
        self._num_open = 0
        self._all_sent = False
        self._finished = self._env.event()

    def run(self) -> Outcome:
        for _ in range(self._fleet.replicas):
            self._add_replica()
        self._env.process(self._arrivals())
        if self._fleet.autoscaling is not None:
            self._env.process(self._scale(self._fleet.autoscaling))
        for loss_s in self._fleet.losses_s:
            self._env.process(self._lose(loss_s))
        self._env.run(self._finished)
        self._outcome.ended_s = self._env.now
        return self._outcome

    def _add_replica(self) -> None:
        number = len(self._outcome.counters)
        replica = Replica(self._env, self._fleet.replica, number)
        self._replicas.append(replica)
        self._outcome.counters.append(replica.counters)
        self._outcome.replicas.append((self._env.now, len(self._replicas)))

    def _arrivals(self) -> Generator[Any, Any, None]:
        """Start each call at its time. Groups whose calls are spread out overlap."""
        later: list[tuple[float, int, Call]] = []
        for number, call in enumerate(self._load.calls()):
            heappush(later, (call.arrives_s, number, call))
            # A group's first call comes after the group does, so earlier ones are all known.
            earliest_s = call.arrives_s - self._load.spread_s
            while later and later[0][0] <= earliest_s:
                yield from self._start(heappop(later)[2])
        while later:
            yield from self._start(heappop(later)[2])
        self._all_sent = True
        self._finish_if_done()

    def _start(self, call: Call) -> Generator[Any, Any, None]:
        if call.arrives_s > self._env.now:
            yield self._env.timeout(call.arrives_s - self._env.now)
        self._num_open += 1
        self._env.process(self._call(call))

    def _call(self, call: Call) -> Generator[Any, Any, None]:
        retries = 0
        yield self._env.timeout(self._fleet.replica.overhead_s)
        while True:
            try:
                replica = self._pick(self._replicas, call.prompt)
                is_answered = yield replica.submit(call)
            except Overloaded as refusal:
                pause_s = refusal.retry_after_s * self._rng.uniform(1.0, 1.25)
            else:
                if is_answered:
                    break
                pause_s = self._rng.uniform(_RETRY_PAUSE_S / 2, _RETRY_PAUSE_S)
            retries += 1
            yield self._env.timeout(pause_s)
        seconds = self._env.now - call.arrives_s
        answered = AnsweredCall(arrives_s=call.arrives_s, seconds=seconds, retries=retries)
        self._outcome.calls.append(answered)
        self._num_open -= 1
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._all_sent and not self._num_open and not self._finished.triggered:
            self._finished.succeed()

    def _scale(self, autoscaling: Autoscaling) -> Generator[Any, Any, None]:
        while True:
            yield self._env.timeout(autoscaling.every_s)
            pending = sum(replica.pending_tokens for replica in self._replicas)
            num_needed = min(-(-pending // autoscaling.target_tokens), autoscaling.max_replicas)
            for _ in range(num_needed - len(self._replicas) - self._num_starting):
                self._num_starting += 1
                self._env.process(self._start_replica(autoscaling.lag_s))

    def _start_replica(self, lag_s: float) -> Generator[Any, Any, None]:
        yield self._env.timeout(lag_s)
        self._num_starting -= 1
        self._add_replica()

    def _lose(self, loss_s: float) -> Generator[Any, Any, None]:
        yield self._env.timeout(loss_s)
        lost = max(self._replicas, key=lambda replica: replica.pending_tokens)
        self._replicas.remove(lost)
        self._outcome.replicas.append((self._env.now, len(self._replicas)))
        lost.stop()
