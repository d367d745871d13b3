"""The base of reward services: ranks and comparisons on top of scores, and the count of calls.

`RewardService` (`service.py`) scores with a model in this process. A service in front of other
processes scores there (`kwise/cluster/`). Adapters for protocols call either of them.
"""

import asyncio
import logging
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from itertools import combinations
from math import comb
from typing import Any

from kwise.comparison import check_pair, compare_pair, ranks
from kwise.engine.server.calls.running_call import CallObservers, RunningCall, current_call
from kwise.engine.slices import CHEAP_SLICE_ITEMS, in_slices
from kwise.errors import InvalidRequest, KwiseError, ServiceFailed, TooManyCalls
from kwise.types import ComparedGroup, Comparison, Group, ModelInfo, RankedGroup, ScoredGroup

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The largest request that is accepted. `ServerConfig` describes the options."""

    max_responses: int = 2048
    max_pairs: int = 50_000
    max_calls_per_client: int | None = None

    def check(self, num_responses: int, num_pairs: int = 0) -> None:
        """Check the size of a request. Adapters call this before they convert a message.

        Raises:
            InvalidRequest: there are more responses or pairs than the limit allows.
        """
        if num_responses > self.max_responses:
            raise InvalidRequest(
                "responses",
                f"there are {num_responses}; the limit is {self.max_responses} (--max-responses)",
            )
        if num_pairs > self.max_pairs:
            raise InvalidRequest(
                "pairs", f"there are {num_pairs}; the limit is {self.max_pairs} (--max-pairs)"
            )


class BaseRewardService(ABC):
    """Scores, ranks and compares groups.

    Attributes:
        limits: the largest request that is accepted.
        draining: set once the service refuses new requests.
        num_calls: the number of calls that have arrived.
        num_running: the number of calls that are being answered.
        calls_of: the number of calls that are being answered, by client; counted only if it is
            limited.
        idling: set while no call is being answered.
        observers: called with each call when it has ended.
    """

    def __init__(self, limits: RequestLimits | None = None) -> None:
        self.limits = limits or RequestLimits()
        self.draining = asyncio.Event()
        self.num_calls = 0
        self.observers = CallObservers()
        self.num_running = 0
        self.calls_of: Counter[str] = Counter()
        self.idling = asyncio.Event()
        self.idling.set()

    # Requests

    @abstractmethod
    def admit(self, model: str) -> None:
        """Check that requests for `model` are answered; "" is whichever is served.

        Raises:
            UnknownModel: no model of that name is served.
            Unavailable: the service drains.
        """

    @abstractmethod
    async def score(self, group: Group, model: str = "") -> ScoredGroup:
        """Return the rewards of the group.

        Args:
            group: the responses to score.
            model: the name of the model that must answer; "" for whichever is served.

        Raises:
            InvalidRequest: the group is malformed, or larger than the limits allow.
            UnknownModel: no model of that name is served.
            Overloaded: the queue has no room for the client.
            Unavailable: the service drains or stops.
            ModelFailed: the runtime failed on every response.
        """

    @abstractmethod
    async def describe(self, model: str = "") -> ModelInfo:
        """Describe the model that is served. Raises the same errors as `admit`."""

    async def rank(self, group: Group, model: str = "") -> RankedGroup:
        """Return the rewards and ranks of the responses. Raises the same errors as `score`."""
        scored = await self.score(group, model)
        return RankedGroup(**_fields_of(scored), ranks=tuple(ranks(scored.rewards)))

    async def compare(
        self, group: Group, pairs: Sequence[tuple[int, int]] = (), model: str = ""
    ) -> ComparedGroup:
        """Return the rewards of the group and comparisons of pairs of its responses.

        Args:
            group: at least two responses.
            pairs: indices of responses; empty for all C(K,2) pairs.
            model: the name of the model that must answer; "" for whichever is served.

        Raises:
            InvalidRequest: as `score`; or there are too few responses, too many pairs, or a pair
                names a response that does not exist.
            KwiseError: as `score`.
        """
        self.admit(model)
        num_responses = len(group.responses)
        self.limits.check(num_responses, len(pairs))
        if num_responses < 2:
            raise InvalidRequest(
                "responses", f"there are {num_responses}; a comparison needs at least two"
            )
        if not pairs and (num_pairs := comb(num_responses, 2)) > self.limits.max_pairs:
            raise InvalidRequest(
                "pairs",
                f"none are given, and all pairs of {num_responses} responses are {num_pairs}; the "
                f"limit is {self.limits.max_pairs} (--max-pairs): give the pairs that you need",
            )
        async for part in in_slices(enumerate(pairs), CHEAP_SLICE_ITEMS):
            for number, (first, second) in part:
                check_pair(number, first, second, num_responses)
        scored = await self.score(group, model)
        comparisons: list[Comparison] = []
        async for batch in in_slices(pairs or combinations(range(num_responses), 2)):
            comparisons += [compare_pair(scored.rewards, first, second) for first, second in batch]
        return ComparedGroup(**_fields_of(scored), comparisons=tuple(comparisons))

    # The life of the service

    def call(self, *, is_limited: bool = True) -> AbstractContextManager[None]:
        """Count a call as running, and report bugs in it. Adapters wrap each call in this.

        Args:
            is_limited: False for a call that the limit on calls of one client does not count.

        Raises:
            TooManyCalls: its client has too many calls in flight.
            ServiceFailed: in place of an exception that is not a `KwiseError`.
        """
        return _Counted(self, self.limits.max_calls_per_client if is_limited else None)

    def streamed_request(self) -> AbstractContextManager[None]:
        """Observe one request of a stream, and report bugs in it. Wrap each of them in this.

        Raises:
            ServiceFailed: in place of an exception that is not a `KwiseError`.
        """
        stream = current_call()
        return bugs_reported() if stream is None else _Streamed(stream)

    def drain(self) -> None:
        """Refuse new requests from now on. Running ones finish."""
        self.draining.set()

    async def idle(self) -> None:
        """Return once no call is running."""
        await self.idling.wait()


class _Counted(AbstractContextManager[None]):
    """Counts a call as running. A class, because it costs half of a generator."""

    __slots__ = ("_client", "_max_calls", "_service")

    def __init__(self, service: BaseRewardService, max_calls: int | None) -> None:
        self._service = service
        self._max_calls = max_calls
        self._client: str | None = None  # the client among whose calls it is counted

    def __enter__(self) -> None:
        service = self._service
        service.num_calls += 1
        if self._max_calls is not None and (call := current_call()) is not None:
            if service.calls_of[call.host_or_name] >= self._max_calls:
                raise TooManyCalls(self._max_calls)
            self._client = call.host_or_name
            service.calls_of[self._client] += 1
        service.num_running += 1
        service.idling.clear()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        service = self._service
        if self._client is not None:
            service.calls_of[self._client] -= 1
            if not service.calls_of[self._client]:
                del service.calls_of[self._client]
        service.num_running -= 1
        if not service.num_running:
            service.idling.set()
        if error is not None:
            _report_bug(error)


class _Streamed(AbstractContextManager[None]):
    """Observes one request of a stream, and reports bugs in it."""

    __slots__ = ("_call",)

    def __init__(self, stream: RunningCall) -> None:
        self._call = stream.streamed()

    def __enter__(self) -> None:
        self._call.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            if error is not None:
                _report_bug(error)
        except ServiceFailed as failed:
            kind, error = ServiceFailed, failed
            raise
        finally:
            self._call.__exit__(kind, error, traceback)


@contextmanager
def bugs_reported() -> Iterator[None]:
    """Log an exception that is not a `KwiseError`, and raise `ServiceFailed` in its place."""
    try:
        yield
    except Exception as error:
        _report_bug(error)
        raise


def _report_bug(error: BaseException) -> None:
    """Raise `ServiceFailed` in place of a bug. Its details belong in the log and not in a reply."""
    if isinstance(error, Exception) and not isinstance(error, KwiseError):
        _LOG.error("a request failed; please report this as a bug of kwise:\n%s", _trace(error))
        raise ServiceFailed from error


def _trace(error: BaseException | None) -> str:
    """Return the traceback of an exception and of its causes, the first one first.

    The messages of exceptions are left out, because they may quote a prompt or a response.
    """
    parts: list[str] = []
    while error is not None:
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{name}")
        error = error.__cause__ or error.__context__
    return "\n\n".join(reversed(parts))


def _fields_of(scored: ScoredGroup) -> dict[str, Any]:
    """Return the fields of a scored group, without copying the rewards."""
    return {field.name: getattr(scored, field.name) for field in fields(ScoredGroup)}
