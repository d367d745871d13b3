"""A replica whose models are evicted and loaded again."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.server.models.source import Source
from tests.sum_session import SumSession, entered, ids, sum_scorer

pytest.importorskip("ray")
from kwise.cluster.service.replica import RewardReplica


async def test_a_model_that_is_loaded_again_outlives_the_end_of_its_predecessor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sessions: list[SumSession] = []

    def load(*arguments: Any, **options: Any) -> Scorer:
        sessions.append(SumSession())
        return sum_scorer(sessions[-1])

    monkeypatch.setattr(Scorer, "load", load)
    artifacts: Mapping[str, Source] = {"a": Source(path=Path("/a"), name="a")}
    replica: Any = object.__new__(RewardReplica)  # without Ray's multiplexing
    replica._artifacts, replica._engine, replica._loaded = artifacts, EngineConfig(), {}
    old = await replica._load("a")
    sessions[0].gate.clear()

    async def score() -> None:
        with old.service.call():
            await old.service.score(ids(1, 2))

    scoring = asyncio.create_task(score())
    await entered(sessions[0])
    closing = asyncio.create_task(old.close())
    new = await replica._load("a")
    sessions[0].gate.set()
    await asyncio.gather(scoring, closing)
    assert replica._loaded == {"a": new}
    await new.close()
    assert replica._loaded == {}
