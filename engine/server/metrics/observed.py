"""The source of the metrics: the models of a service, as they are at one moment."""

from collections.abc import Iterator
from dataclasses import dataclass

from kwise.engine.server.service import RewardService
from kwise.engine.statistics.counters import Counters
from kwise.engine.statistics.state import EngineState
from kwise.types import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedModel:
    """One model of a service.

    Attributes:
        info: what GetModel returns.
        counters: its totals and histograms, which go on counting.
        state: what waits and what is cached.
    """

    info: ModelInfo
    counters: Counters
    state: EngineState


def observed_models(service: RewardService) -> Iterator[ObservedModel]:
    """Yield each model that the service has loaded, also while the service drains."""
    limits = service.limits
    for model in service.models.values():
        info = model.info(max_responses=limits.max_responses, max_pairs=limits.max_pairs)
        yield ObservedModel(info=info, counters=model.counters, state=model.state)
