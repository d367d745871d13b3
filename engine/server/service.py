"""The reward service without a protocol: dataclasses in, dataclasses or `KwiseError` out.

It holds the scorer that is served, admits requests, and knows when it is idle. gRPC is an adapter
on top of it (`grpc/rewards.py`); each protocol has one. An adapter converts messages, wraps
each call in `call()`, and maps the status of an error to its own protocol.

All methods run on one event loop. Work that grows with the pairs of a request is done in slices,
between which the loop serves other requests.
"""

import asyncio
from dataclasses import fields

from kwise.engine.scorer import Scorer
from kwise.engine.server.base_service import BaseRewardService, RequestLimits
from kwise.engine.server.calls.running_call import note_group
from kwise.errors import Unavailable, UnknownModel
from kwise.types import Counters, Group, ModelInfo, ScoredGroup


class RewardService(BaseRewardService):
    """Scores, ranks and compares groups with the scorer that is served at present.

    `swap` replaces the scorer. A request is answered by the scorer that was served when it arrived.

    Attributes:
        scorer: the scorer that answers new requests.
    """

    def __init__(self, scorer: Scorer, limits: RequestLimits | None = None) -> None:
        super().__init__(limits)
        self.scorer = scorer
        self._replaced: set[Scorer] = set()  # scorers that still answer earlier requests

    # Requests

    async def score(self, group: Group, model: str = "") -> ScoredGroup:
        self.admit(model)
        self.limits.check(len(group.responses))
        note_group(self.scorer.artifact.manifest.name, group)
        return await self.scorer.score(group)

    async def describe(self, model: str = "") -> ModelInfo:
        return self.model_info(model)

    def model_info(self, model: str = "") -> ModelInfo:
        """Describe the model that is served.

        Raises:
            UnknownModel: no model of that name is served.
            Unavailable: the service drains.
        """
        self.admit(model)
        scorer = self.scorer
        manifest, config, counters = scorer.artifact.manifest, scorer.config, scorer.counters
        state = scorer.state
        return ModelInfo(
            model=manifest.name,
            fingerprint=manifest.fingerprint,
            layout=manifest.layout,
            precision=scorer.precision.value,
            runtime=scorer.runtime,
            max_tokens=scorer.max_tokens,
            max_batch_tokens=config.effective_max_batch_tokens,
            overlong=config.overlong.value,
            control_tokens=config.control_tokens.value,
            reward_mean=manifest.reward_mean,
            reward_std=manifest.reward_std,
            counters=Counters(**{f.name: getattr(counters, f.name) for f in fields(Counters)}),
            max_responses=self.limits.max_responses,
            max_pairs=self.limits.max_pairs,
            queue_tokens=state.queue_tokens,
            queue_sequences=state.queue_sequences,
            max_queue_tokens=state.max_queue_tokens,
            num_devices=len(state.prompt_caches),
        )

    def admit(self, model: str) -> None:
        if self.draining.is_set():
            raise Unavailable.draining()
        served = self.scorer.artifact.manifest.name
        if model and model != served:
            raise UnknownModel(model, served)

    # The life of the service

    async def swap(self, scorer: Scorer) -> None:
        """Serve `scorer`, which is started. Return once the old one has answered its requests."""
        old, self.scorer = self.scorer, scorer
        self._replaced.add(old)
        await old.idle()
        await old.close()
        self._replaced.discard(old)

    async def stop(self) -> None:
        """Answer every waiting request with `Unavailable`."""
        await asyncio.gather(*(scorer.stop() for scorer in (self.scorer, *self._replaced)))

    async def close(self) -> None:
        """Stop, and release the models."""
        await asyncio.gather(*(scorer.close() for scorer in (self.scorer, *self._replaced)))
