"""The reward service without a protocol: dataclasses in, dataclasses or `KwiseError` out.

It holds the scorer that is served, admits requests, and knows when it is idle. gRPC is an adapter
on top of it (`grpc/rewards.py`); each protocol has one. An adapter converts messages, wraps
each call in `call()`, and maps the status of an error to its own protocol.

All methods run on one event loop. Work that grows with the pairs of a request is done in slices,
between which the loop serves other requests.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import combinations
from math import comb
from typing import Any

from kwise.comparison import check_pair, compare_pair, ranks
from kwise.engine.scorer import Scorer
from kwise.engine.slices import CHEAP_SLICE_ITEMS, in_slices
from kwise.errors import InvalidRequest, KwiseError, ServiceFailed, Unavailable, UnknownModel
from kwise.types import (
    ComparedGroup,
    Comparison,
    Counters,
    Group,
    ModelInfo,
    RankedGroup,
    ScoredGroup,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The largest request that is accepted. `ServerConfig` describes the options."""

    max_responses: int = 2048
    max_pairs: int = 50_000

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


class RewardService:
    """Scores, ranks and compares groups with the scorer that is served at present.

    `swap` replaces the scorer. A request is answered by the scorer that was served when it arrived.

    Attributes:
        scorer: the scorer that answers new requests.
        limits: the largest request that is accepted.
        draining: set once the service refuses new requests.
        num_calls: the number of calls that have arrived.
    """

    def __init__(self, scorer: Scorer, limits: RequestLimits | None = None) -> None:
        self.scorer = scorer
        self.limits = limits or RequestLimits()
        self.draining = asyncio.Event()
        self.num_calls = 0
        self._replaced: set[Scorer] = set()  # scorers that still answer earlier requests
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # Requests

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
        self._admit(model)
        self.limits.check(len(group.responses))
        return await self.scorer.score(group)

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
        self._admit(model)
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
        scored = await self.scorer.score(group)
        comparisons: list[Comparison] = []
        async for batch in in_slices(pairs or combinations(range(num_responses), 2)):
            comparisons += [compare_pair(scored.rewards, first, second) for first, second in batch]
        return ComparedGroup(**_fields_of(scored), comparisons=tuple(comparisons))

    def model_info(self, model: str = "") -> ModelInfo:
        """Describe the model that is served.

        Raises:
            UnknownModel: no model of that name is served.
            Unavailable: the service drains.
        """
        self._admit(model)
        scorer = self.scorer
        manifest, config, counters = scorer.artifact.manifest, scorer.config, scorer.counters
        return ModelInfo(
            model=manifest.name,
            fingerprint=manifest.fingerprint,
            layout=manifest.layout,
            precision=scorer.precision.value,
            runtime=scorer.runtime,
            max_tokens=scorer.max_tokens,
            max_batch_tokens=config.max_batch_tokens,
            overlong=config.overlong.value,
            control_tokens=config.control_tokens.value,
            reward_mean=manifest.reward_mean,
            reward_std=manifest.reward_std,
            counters=Counters(**{f.name: getattr(counters, f.name) for f in fields(Counters)}),
            max_responses=self.limits.max_responses,
            max_pairs=self.limits.max_pairs,
        )

    def _admit(self, model: str) -> None:
        if self.draining.is_set():
            raise Unavailable.draining()
        served = self.scorer.artifact.manifest.name
        if model and model != served:
            raise UnknownModel(model, served)

    # The life of the service

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call as running, and report bugs in it. Adapters wrap each call in this.

        Raises:
            ServiceFailed: in place of an exception that is not a `KwiseError`.
        """
        self.num_calls += 1
        self._num_running += 1
        self._idle.clear()
        try:
            with bugs_reported():
                yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    async def swap(self, scorer: Scorer) -> None:
        """Serve `scorer`, which is started. Return once the old one has answered its requests."""
        old, self.scorer = self.scorer, scorer
        self._replaced.add(old)
        await old.idle()
        await old.close()
        self._replaced.discard(old)

    def drain(self) -> None:
        """Refuse new requests from now on. Running ones finish."""
        self.draining.set()

    async def idle(self) -> None:
        """Return once no call is running."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Answer every waiting request with `Unavailable`."""
        await asyncio.gather(*(scorer.stop() for scorer in (self.scorer, *self._replaced)))

    async def close(self) -> None:
        """Stop, and release the models."""
        await asyncio.gather(*(scorer.close() for scorer in (self.scorer, *self._replaced)))


@contextmanager
def bugs_reported() -> Iterator[None]:
    """Log an exception that is not a `KwiseError`, and raise `ServiceFailed` in its place.

    Its details belong in the log and not in a reply.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, KwiseError):
            raise
        _LOG.exception("a request failed")
        raise ServiceFailed from error


def _fields_of(scored: ScoredGroup) -> dict[str, Any]:
    """Return the fields of a scored group, without copying the rewards."""
    return {field.name: getattr(scored, field.name) for field in fields(ScoredGroup)}
