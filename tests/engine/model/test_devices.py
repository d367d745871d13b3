"""`--device` names devices that share one queue, each with its own model and prompt cache."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.devices import Device, Kind, parse_devices
from kwise.engine.model.session import GraphSession, Pass
from kwise.engine.scorer import Scorer
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ArtifactError, ConfigError
from kwise.types import Group, Message
from tests.servers import PATIENCE_S, raw_rewards


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda:0"]),
        ("cuda:3", ["cuda:3"]),
        ("cuda:1,cuda:0", ["cuda:1", "cuda:0"]),
        ("cuda, cuda:1", ["cuda:0", "cuda:1"]),
    ],
)
def test_devices_are_those_named_in_their_order(text: str, names: list[str]) -> None:
    assert [device.name for device in parse_devices(text)] == names


@given(st.lists(st.integers(0, 99), min_size=1, unique=True))
def test_names_round_trip(indices: list[int]) -> None:
    devices = tuple(Device(kind=Kind.CUDA, index=index) for index in indices)
    assert parse_devices(",".join(device.name for device in devices)) == devices


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cuda:0,cuda", "names cuda:0 twice"),
        ("cpu,cpu", "names cpu twice"),
        ("cuda:0,cpu", "not both"),
        ("", "must be cpu, cuda, cuda:N"),
        ("cuda:0,", "must be cpu, cuda, cuda:N"),
        ("cuda:", "must be cpu, cuda, cuda:N"),
        ("cuda:-1", "must be cpu, cuda, cuda:N"),
        ("cuda:²", "must be cpu, cuda, cuda:N"),
        ("cpu:0", "must be cpu, cuda, cuda:N"),
        ("gpu", "must be cpu, cuda, cuda:N"),
    ],
)
def test_impossible_devices_are_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"--device is {text!r}; .*{problem}"):
        parse_devices(text)


@given(st.text(alphabet="cpuda:,0123 ", max_size=20))
def test_any_text_is_distinct_devices_of_one_kind_or_a_config_error(text: str) -> None:
    try:
        devices = parse_devices(text)
    except ConfigError:
        return
    assert len(set(devices)) == len(devices) >= 1
    assert len({device.kind for device in devices}) == 1


class OnCpu(GraphSession):
    """A session that accepts any device's name and runs on the CPU.

    `offset` is added to its rewards. If `barrier` is set, its first pass waits there, so that
    another session must take what waits meanwhile.
    """

    def __init__(
        self, artifact: Artifact, *, device: str = "cpu", offset: float = 0.0, **options: Any
    ) -> None:
        super().__init__(artifact, **options | {"threads": 1})
        self.device, self.offset = device, offset
        self.barrier: threading.Barrier | None = None
        self.batches: list[int] = []

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = lambda: None
    ) -> Callable[[], Pass]:
        return partial(self._run_prepared, batch, super().prepare(batch, started))

    def _run_prepared(self, batch: Sequence[EncodedSequence], prepared: Callable[[], Pass]) -> Pass:
        self.batches.append(len(batch))
        if self.barrier is not None and len(self.batches) == 1:
            self.barrier.wait(PATIENCE_S)
        passed = prepared()
        return Pass(
            rewards=passed.rewards + self.offset,
            num_rows=passed.num_rows,
            num_reused=passed.num_reused,
        )


def _groups() -> list[Group]:
    """Return groups of one response each, for two prompts in turn."""
    prompts = [
        f"Tell me in one short sentence what you know about {what}."
        for what in ("cabbages", "kings")
    ]
    return [
        Group(
            prompt=(Message(role="user", content=prompt),),
            responses=(f"There are {number} of them.",),
        )
        for number in range(8)
        for prompt in prompts
    ]


async def test_two_sessions_share_one_queue_and_each_caches_the_prompts_it_has_seen(
    tiny_artifact: Path,
) -> None:
    artifact = read_artifact(tiny_artifact)
    sessions = [OnCpu(artifact, prompt_cache_bytes=1 << 20) for _ in range(2)]
    barrier = threading.Barrier(2)
    for session in sessions:
        session.barrier = barrier
    config = EngineConfig(max_batch_tokens=64, cache_bytes=0)
    async with Scorer(artifact, config, new_encoder(artifact, config), sessions) as scorer:
        scored = await asyncio.gather(*map(scorer.score, _groups()))
    async with Scorer.load(tiny_artifact, EngineConfig(prompt_cache_bytes=0)) as alone:
        expected = [raw_rewards(await alone.score(group)) for group in _groups()]
    assert [raw_rewards(outcome) for outcome in scored] == [
        pytest.approx(raw, abs=2e-5) for raw in expected
    ]
    assert sum(map(len, (sessions[0].batches, sessions[1].batches))) == scorer.counters.model_passes
    assert sum(sum(session.batches) for session in sessions) == len(_groups())
    assert all(session.batches and len(session.prompt_cache) for session in sessions)
    assert scorer.counters.reused_rows > 0


def test_each_device_gets_a_session_and_is_checked(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[OnCpu] = []

    def make(artifact: Artifact, **options: Any) -> OnCpu:
        made.append(OnCpu(artifact, offset=float(options["device"] == "cuda:3"), **options))
        return made[-1]

    monkeypatch.setattr("kwise.engine.load.GraphSession", make)
    Scorer.load(tiny_artifact, EngineConfig(device="cuda:0,cuda:2"))
    assert [session.device for session in made] == ["cuda:0", "cuda:2"]
    assert len({id(session.prompt_cache) for session in made}) == 2
    assert made[0].batches == made[1].batches != []
    with pytest.raises(ArtifactError, match=r"golden\.jsonl:1"):
        Scorer.load(tiny_artifact, EngineConfig(device="cuda:0,cuda:3"))


def test_bad_devices_are_refused_before_the_artifact_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names cuda:1 twice"):
        Scorer.load(tmp_path / "missing", EngineConfig(device="cuda:1,cuda:1"))
