"""Changes of the models of a service, beside requests, calls that end early, and other changes."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kwise.engine.artifact.files import FileEntry
from kwise.engine.artifact.manifest import Manifest
from kwise.engine.artifact.names import CHAT_TEMPLATE
from kwise.engine.artifact.read import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.ensemble import Ensemble
from kwise.engine.scorer import Scorer
from kwise.engine.server.models.loader import Loader
from kwise.engine.server.models.source import EnsembleSource, Source
from kwise.engine.server.service import RewardService
from kwise.errors import ArtifactError, InvalidRequest, UnknownModel
from kwise.types import Reward
from tests.sum_session import MANIFEST, SumSession, entered, ids, sum_encoder, sum_scorer

# The operations of the test of random changes, and how often each is chosen.
_WEIGHTS = {
    "score": 40,
    "replace": 8,
    "unload": 5,
    "combine": 6,
    "reload": 2,
    "cancel": 6,
    "hold": 3,
    "release": 6,
    "wait": 10,
}
TOKENIZER = {"tokenizer.json": FileEntry(sha256="same", bytes=1)}


class SumLoader(Loader):
    """Loads scorers of sums, whose mean is the number that a source's path ends with.

    Attributes:
        sessions: the session of each model that was loaded, in order.
    """

    def __init__(self) -> None:
        super().__init__(EngineConfig())
        self.sessions: list[SumSession] = []

    def _load(self, name: str, source: Source, counters: Any) -> Scorer:
        session = SumSession()
        self.sessions.append(session)
        artifact = Artifact(path=source.path, manifest=manifest_of(source.path), golden=())
        return Scorer(
            artifact, EngineConfig(), sum_encoder(), [session], counters, name, self._devices
        )


def manifest_of(path: Path) -> Manifest:
    files = dict(TOKENIZER)
    if path.name.startswith("chat"):
        files[CHAT_TEMPLATE] = FileEntry(sha256="chat", bytes=1)
    mean = float(path.name.removeprefix("chat"))
    return msgspec.structs.replace(MANIFEST, name="x", reward_mean=mean, files=files).signed()


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> SumLoader:
    monkeypatch.setattr("kwise.engine.server.models.loader.read_manifest", manifest_of)
    monkeypatch.setattr("kwise.engine.server.models.loader.freeze_heap", lambda: None)
    monkeypatch.setattr("kwise.engine.server.models.loader.return_memory", lambda: None)
    return SumLoader()


def source(mean: int, name: str = "a", kind: str = "") -> Source:
    return Source(path=Path(f"/{kind}{mean}"), name=name)


async def serving(loader: Loader, *sources: Source) -> RewardService:
    return RewardService(loader.load(sources))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def value(service: RewardService, model: str, response: int = 3) -> float:
    (reward,) = (await service.score(ids(1, response), model)).rewards
    assert isinstance(reward, Reward)
    return reward.value


async def cancelled(call: "asyncio.Task[Any]") -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_change_whose_call_ends_early_is_completed(
    loader: SumLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the old model would stay in memory, and a reload would look for one that went."""
    service = await serving(loader, source(0), source(0, "b"))
    stopped: list[Scorer] = []
    stop = Scorer.stop

    async def noted(scorer: Scorer) -> None:
        stopped.append(scorer)
        await stop(scorer)

    monkeypatch.setattr(Scorer, "stop", noted)
    olds = [service.models["a"], service.models["b"]]
    loader.sessions[0].gate.clear()
    # The second one waits for its turn of the device.
    scoring = [asyncio.create_task(value(service, name)) for name in ("a", "b")]
    await entered(loader.sessions[0])
    loading = asyncio.create_task(loader.replace(service, "a", source(1)))
    await until(lambda: service.models["a"] is not olds[0])
    await cancelled(loading)
    unloading = asyncio.create_task(loader.unload(service, "b"))  # waits for the other change
    await asyncio.sleep(0)
    await cancelled(unloading)
    loader.sessions[0].gate.set()
    assert await asyncio.gather(*scoring) == [4.0, 4.0]
    await until(lambda: set(olds) <= set(stopped))
    assert list(service.models) == ["a"]
    assert loader.source("b") is None
    await loader.reload(service)
    assert await value(service, "a") == 3.0
    await service.stop()


async def test_a_reload_does_not_bring_back_a_model_that_is_being_unloaded(
    loader: SumLoader,
) -> None:
    service = await serving(loader, source(0), source(0, "b"))
    loader.sessions[1].gate.clear()
    scoring = asyncio.create_task(value(service, "b"))
    await entered(loader.sessions[1])
    unloading = asyncio.create_task(loader.unload(service, "b"))
    await until(lambda: "b" not in service.models)
    reloading = asyncio.create_task(loader.reload(service))
    await asyncio.sleep(0)
    loader.sessions[1].gate.set()
    await asyncio.gather(unloading, reloading)
    assert await scoring == 4.0
    assert list(service.models) == ["a"]
    await service.stop()


async def test_a_member_of_an_ensemble_is_not_replaced_by_a_model_that_reads_otherwise(
    loader: SumLoader,
) -> None:
    service = await serving(loader, source(0), source(0, "b"))
    await loader.combine(service, EnsembleSource(name="both", member_names=("a", "b")))
    with pytest.raises(ArtifactError, match=r"reads a conversation, and a is a member .* 'both'"):
        await loader.replace(service, "a", source(1, kind="chat"))
    assert await loader.replace(service, "a", source(1))
    assert await value(service, "both") == 3.5
    await service.stop()


async def test_a_member_that_is_replaced_answers_the_ensembles_request_first(
    loader: SumLoader,
) -> None:
    """The request has found its members, but their tasks have not begun."""
    service = await serving(loader, source(0), source(0, "b"))
    both = await loader.combine(service, EnsembleSource(name="both", member_names=("a", "b")))
    new = sum_scorer(manifest=manifest_of(Path("/1")))
    new.name = "a"
    new.start()
    fingerprint = both.info(max_responses=1, max_pairs=1).fingerprint
    scoring, replacing = service.score(ids(1, 3), "both"), service.add(new)
    scored, _ = await asyncio.gather(scoring, replacing)
    assert (scored.values, scored.fingerprint) == ((4.0,), fingerprint)
    assert await value(service, "both") == 3.5
    await service.stop()


@pytest.mark.parametrize("seed", range(3))
async def test_random_changes_leave_each_request_its_own_models_reward(
    loader: SumLoader, seed: int
) -> None:
    """Each reward fits the fingerprint of its reply, and nothing but the expected errors occurs."""
    await random_changes(loader, random.Random(seed), 250)


async def random_changes(loader: SumLoader, rng: random.Random, count: int) -> dict[str, int]:
    """Run operations at random, and return how many of each kind ended in which way."""
    service = await serving(loader, source(0), source(1, "b"))
    means = {manifest_of(Path(f"/{mean}")).fingerprint: float(mean) for mean in range(5)}
    names = ["a", "b", "c", "d", "e", "e2"]
    ended: dict[str, int] = {}
    running: set[asyncio.Task[None]] = set()

    def note(kind: str) -> None:
        ended[kind] = ended.get(kind, 0) + 1

    async def score(name: str) -> None:
        served = service.models.get(name)
        prompt = rng.randrange(1, 5)
        responses = [rng.randrange(9) for _ in range(rng.randrange(1, 5))]
        expected = member_means(served)
        try:
            scored = await service.score(ids(prompt, *responses), name)
        except UnknownModel:
            assert served is None
            note("unknown")
            return
        assert scored.model == name
        for reward, response in zip(scored.rewards, responses, strict=True):
            assert isinstance(reward, Reward)
            values = tuple(prompt + response - mean for mean in expected)
            assert reward.value == pytest.approx(sum(values) / len(values))
            assert reward.raw == prompt + response
            if isinstance(served, Ensemble):
                assert (reward.members, reward.min) == (values, min(values))
            else:
                assert means[scored.fingerprint] == expected[0]
                assert reward.members == ()
        note("scored")

    def member_means(served: Any) -> list[float]:
        members = served.members if isinstance(served, Ensemble) else [served]
        return [m.artifact.manifest.reward_mean for m in members if isinstance(m, Scorer)]

    async def change(kind: str, name: str) -> None:
        try:
            if kind == "replace":
                await loader.replace(service, name, source(rng.randrange(5), name))
            elif kind == "unload":
                await loader.unload(service, name)
            elif kind == "combine":
                members = tuple(rng.sample(names[:4], rng.randrange(2, 4)))
                await loader.combine(service, EnsembleSource(name=name, member_names=members))
            else:
                await loader.reload(service)
        except (InvalidRequest, UnknownModel) as error:
            kind = f"{kind}: {type(error).__name__}"
        note(kind)

    for _ in range(count):
        (kind,) = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        if kind == "score":
            work = score(rng.choice(names))
        elif kind in ("replace", "unload", "combine", "reload"):
            work = change(kind, rng.choice(names))
        elif kind == "cancel":
            if running:
                rng.choice(sorted(running, key=lambda task: task.get_name())).cancel()
            continue
        elif kind in ("hold", "release"):
            for session in loader.sessions:
                (session.gate.clear if kind == "hold" else session.gate.set)()
            continue
        else:
            await asyncio.sleep(rng.choice((0, 0, 0.001)))
            continue
        task = asyncio.create_task(work)
        running.add(task)
        task.add_done_callback(running.discard)
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    for session in loader.sessions:
        session.gate.set()
    for task in list(running):
        with suppress(asyncio.CancelledError):
            await task
    while loader._changes or service._retiring:
        await asyncio.sleep(0)
    for model in service.models.values():
        await asyncio.wait_for(model.idle(), 60)
        if isinstance(model, Scorer):
            assert model.num_tokens_in_flight == model.state.queue_tokens == 0
    assert set(loader._sources) == {n for n, m in service.models.items() if isinstance(m, Scorer)}
    await service.stop()
    return ended
