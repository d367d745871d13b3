"""The service without gRPC: limits, errors and slices, with a real model and no socket."""

import asyncio
import gc
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kwise.comparison import ranks
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.server.base_service import RequestLimits
from kwise.engine.server.daemon_thread import in_daemon_thread
from kwise.engine.server.models.loader import Loader
from kwise.engine.server.models.source import Source
from kwise.engine.server.service import RewardService
from kwise.engine.slices import SLICE_ITEMS, in_slices
from kwise.errors import (
    ArtifactError,
    InvalidRequest,
    KwiseError,
    ServiceFailed,
    Status,
    Unavailable,
    UnknownModel,
)
from kwise.types import Group, Message
from tests.sum_session import sum_scorer


def group(*responses: str) -> Group:
    return Group(prompt=(Message(role="user", content="Hello"),), responses=responses)


def numbered(count: int) -> Group:
    return group(*map(str, range(count)))


@pytest.fixture
async def service(tiny_artifact: Path) -> AsyncIterator[RewardService]:
    """A service whose limits are 64 responses and 2,100 pairs: all pairs of 64 are 2,016."""
    scorer = Scorer.load(tiny_artifact)
    scorer.start()
    service = RewardService([scorer], RequestLimits(max_responses=64, max_pairs=2100))
    yield service
    await service.stop()


async def test_ranks_and_comparisons_follow_from_the_rewards(service: RewardService) -> None:
    ranked = await service.rank(numbered(9))
    compared = await service.compare(numbered(9))
    raw = [reward.raw for reward in compared.rewards if not isinstance(reward, KwiseError)]
    assert list(ranked.ranks) == ranks(ranked.rewards)
    assert [(c.first, c.second) for c in compared.comparisons] == list(combinations(range(9), 2))
    assert all(c.margin == raw[c.first] - raw[c.second] for c in compared.comparisons)
    (one,) = (await service.compare(numbered(9), [(8, 0)])).comparisons
    assert one.margin == raw[8] - raw[0]


async def test_a_request_over_a_limit_is_refused_before_any_work(service: RewardService) -> None:
    too_many = r"responses: there are 65; the limit is 64 \(--max-responses\)"
    with pytest.raises(InvalidRequest, match=too_many):
        await service.score(numbered(65))
    with pytest.raises(InvalidRequest, match=too_many):
        await service.compare(numbered(65), [(0, 1)])
    with pytest.raises(InvalidRequest, match=r"pairs: there are 2101; the limit is 2100"):
        await service.compare(numbered(2), [(0, 1)] * 2101)
    service.limits = RequestLimits(max_responses=64, max_pairs=2015)
    with pytest.raises(InvalidRequest, match=r"all pairs of 64 .* are 2016; .* give the pairs"):
        await service.compare(numbered(64))
    assert service.model().counters.sequences == 0
    assert len((await service.compare(numbered(64), [(0, 63)])).comparisons) == 1
    assert len((await service.compare(numbered(63))).comparisons) == 1953


@pytest.mark.parametrize(
    ("responses", "pairs", "field"),
    [(1, [], "responses"), (2, [(0, 2)], "pairs[0]"), (3, [(0, 1), (-1, 1)], "pairs[1]")],
)
async def test_a_pair_that_cannot_be_compared_is_named(
    service: RewardService, responses: int, pairs: list[tuple[int, int]], field: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await service.compare(numbered(responses), pairs)
    assert raised.value.field == field


async def test_other_models_and_a_draining_service_are_refused(service: RewardService) -> None:
    name = service.model().name
    assert service.model_info(name).model == (await service.score(group("a"), name)).model == name
    for call in (service.score, service.rank):
        with pytest.raises(UnknownModel):
            await call(group("a"), "other")
    service.drain()
    with pytest.raises(Unavailable):
        await service.compare(group("a", "b"))
    with pytest.raises(Unavailable):
        service.model_info()


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 2048),
        ({"device": "cuda:1,cuda:2"}, 8192),
        ({"device": "cuda", "max_batch_tokens": 64}, 64),
    ],
)
def test_get_model_reports_the_rows_of_a_batch(options: dict[str, Any], rows: int) -> None:
    assert RewardService([sum_scorer(**options)]).model_info().max_batch_tokens == rows


async def test_the_loop_turns_between_slices_of_comparisons(service: RewardService) -> None:
    await service.score(numbered(64))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    await asyncio.sleep(0)
    compared = await service.compare(numbered(64))  # cached: nothing to wait for but the slices
    counting.cancel()
    assert turns >= len(compared.comparisons) // SLICE_ITEMS == 1


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
async def test_slices_hold_every_item_once_and_in_order(count: int) -> None:
    parts = [part async for part in in_slices(range(count), 4)]
    assert [item for part in parts for item in part] == list(range(count))
    assert all(1 <= len(part) <= 4 for part in parts)


async def test_a_bug_is_logged_and_its_text_does_not_reach_the_client(
    service: RewardService, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ServiceFailed) as raised, service.call():
        raise ZeroDivisionError("a secret")
    assert raised.value.status is Status.INTERNAL
    assert "a secret" not in str(raised.value)
    assert "a secret" in caplog.text


async def test_the_service_is_idle_when_no_call_runs(service: RewardService) -> None:
    with service.call():
        waiting = asyncio.create_task(service.idle())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    assert service.num_calls == 1


def test_the_service_imports_no_protocol() -> None:
    program = """
import sys
import kwise.engine.server.service
print(*sorted({"grpc", "google.protobuf"} & sys.modules.keys()))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == ""


# Reload


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that are loaded from now on."""
    paths: list[Path] = []
    load = Scorer.load

    def noted(path: Path, *arguments: object) -> Scorer:
        paths.append(path)
        return load(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Scorer, "load", noted)
    return paths


async def test_an_artifact_that_is_the_same_or_of_another_name_is_not_loaded(
    service: RewardService,
    tiny_artifact: Path,
    tmp_path: Path,
    loads: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only the manifest is there, so that reading any other file would be an error."""
    caplog.set_level("INFO")
    (tmp_path / "manifest.json").write_bytes((tiny_artifact / "manifest.json").read_bytes())
    loader, scorer = Loader(EngineConfig()), service.model()
    assert not await loader.replace(service, "tiny", Source(path=tmp_path))
    assert "has not changed" in caplog.text
    renamed = msgspec.structs.replace(read_manifest(tmp_path), name="other").signed()
    (tmp_path / "manifest.json").write_text(renamed.to_json())
    problem = "this artifact is called other, and clients ask for tiny"
    with pytest.raises(ArtifactError, match=problem):
        await loader.replace(service, "tiny", Source(path=tmp_path))
    # Its own name does not matter if the server was given another one.
    assert not await loader.replace(service, "tiny", Source(path=tiny_artifact, name="tiny"))
    assert loads == []
    assert service.model() is scorer


async def test_a_thread_that_loads_returns_or_raises_where_it_is_awaited() -> None:
    def fail() -> None:
        raise KeyError("x")

    assert await in_daemon_thread(lambda: 7, name="test") == 7
    with pytest.raises(KeyError):
        await in_daemon_thread(fail, name="test")


async def test_a_load_that_nobody_waits_for_may_end_later() -> None:
    held, ended = threading.Event(), threading.Event()

    def load() -> None:
        held.wait()
        ended.set()

    loading = asyncio.create_task(in_daemon_thread(load, name="test"))
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    held.set()
    await asyncio.to_thread(ended.wait)


async def test_the_old_model_is_garbage_before_the_heap_is_frozen(
    tmp_path: Path, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, it would stay in memory until the next reload: 490 MB of SmolLM2."""
    artifact = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, artifact)
    scorer = Scorer.load(artifact)
    scorer.start()
    old = weakref.ref(scorer._batcher._sessions[0])
    service = RewardService([scorer])
    changed = msgspec.structs.replace(scorer.artifact.manifest, reward_mean=1.0).signed()
    (artifact / "manifest.json").write_text(changed.to_json())
    del scorer
    is_freed = []

    def freeze() -> None:
        gc.collect()
        is_freed.append(old() is None)

    monkeypatch.setattr("kwise.engine.server.models.loader.freeze_heap", freeze)
    assert await Loader(EngineConfig()).replace(service, "tiny", Source(path=artifact))
    assert is_freed == [True]
    await service.stop()
