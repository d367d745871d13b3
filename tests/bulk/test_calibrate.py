"""`kwise calibrate` puts the mean and scale of a reference set into the manifest."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.bulk.calibrate import RewardMoments
from kwise.cli import main
from kwise.engine.artifact.names import MANIFEST
from kwise.engine.artifact.read import read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.types import Group, Message, Reward

ROWS = [
    {"prompt": "Why is the sky blue?", "responses": ["It scatters light.", "No idea.", "Ask me!"]},
    {"prompt": "Name a prime.", "responses": ["7"]},
]


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def reference(tmp_path: Path, *rows: dict[str, Any]) -> str:
    path = tmp_path / "reference.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


async def _scored(artifact: Path) -> list[Reward]:
    async with Scorer.load(artifact, EngineConfig()) as scorer:
        rewards: list[Any] = []
        for row in ROWS:
            prompt = (Message(role="user", content=str(row["prompt"])),)
            group = Group(prompt=prompt, responses=tuple(row["responses"]))
            rewards += (await scorer.score(group)).rewards
        assert all(isinstance(reward, Reward) for reward in rewards)
        return rewards


async def test_values_of_the_reference_set_have_mean_0_and_std_1(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_artifact(artifact).manifest
    assert main(["calibrate", str(artifact), reference(tmp_path, *ROWS)]) == 0
    assert "4 responses: value is (raw + 0.315" in capsys.readouterr().err
    after = read_artifact(artifact).manifest
    rewards = await _scored(artifact)
    raw = np.array([reward.raw for reward in rewards])
    values = np.array([reward.value for reward in rewards])
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(
        [after.reward_mean, after.reward_std], [raw.mean(), raw.std()], atol=1e-5
    )
    assert after.provenance["calibration"]["responses"] == 4
    assert after.fingerprint != before.fingerprint
    assert after.files == before.files


async def test_each_member_gets_a_mean_and_a_std_of_its_own(
    members_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run starts from values that are normalised already, and changes nothing."""
    artifact = Path(shutil.copytree(members_artifact, tmp_path / "artifact"))
    raw = np.array([reward.members for reward in await _scored(artifact)])
    for _ in range(2):
        assert main(["calibrate", str(artifact), reference(tmp_path, *ROWS)]) == 0
        assert "4 responses: member 3: value is (raw" in capsys.readouterr().err
        manifest = read_artifact(artifact).manifest
        members = manifest.members or ()
        np.testing.assert_allclose([member.mean for member in members], raw.mean(0), atol=1e-5)
        np.testing.assert_allclose([member.std for member in members], raw.std(0), atol=1e-5)
        assert len(manifest.provenance["calibration"]["raw_mean"]) == 3
    values = np.array([reward.members for reward in await _scored(artifact)])
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-5)


def test_the_scale_may_stay(artifact: Path, tmp_path: Path) -> None:
    arguments = [reference(tmp_path, *ROWS), "--mean-only"]
    assert main(["calibrate", str(artifact), *arguments]) == 0
    manifest = read_artifact(artifact).manifest
    assert manifest.reward_std == 1 and manifest.reward_mean != 0


def test_nothing_is_written_if_a_response_is_not_scored(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (artifact / MANIFEST).read_bytes()
    bad = {"prompt": "p", "responses": ["a", ["not", "a", "response"]]}
    arguments = [reference(tmp_path, *ROWS, bad)]
    assert main(["calibrate", str(artifact), *arguments]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert (artifact / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "has 0 responses; the reference set needs at least 2"),
        ([ROWS[1]], "has 1 responses"),
        ([ROWS[1], ROWS[1]], "all 2 responses have the reward"),
    ],
)
def test_a_reference_set_without_a_scale_is_refused(
    artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    problem: str,
) -> None:
    assert main(["calibrate", str(artifact), reference(tmp_path, *rows)]) == 2
    assert problem in capsys.readouterr().err


def test_an_artifact_that_is_replaced_during_the_run_keeps_its_manifest(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest that was read at the start belongs to other files."""
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    new = msgspec.structs.replace(read_artifact(artifact).manifest, reward_mean=3.0).signed()

    def replace_and_write() -> None:
        with pipe.open("w") as file:  # opens once the command reads the rows
            work = tmp_path / "new"
            work.write_text(new.to_json(), encoding="utf-8")
            work.replace(artifact / MANIFEST)
            file.write(json.dumps(ROWS[0]) + "\n")

    writer = threading.Thread(target=replace_and_write, daemon=True)
    writer.start()
    assert main(["calibrate", str(artifact), str(pipe)]) == 2
    writer.join()
    assert "another one was put in its place meanwhile" in capsys.readouterr().err
    assert read_artifact(artifact).manifest == new


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_the_moments_are_those_of_numpy(values: list[float]) -> None:
    moments = RewardMoments()
    for value in values:
        moments.add(value)
    np.testing.assert_allclose(moments.mean, np.mean(values), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(moments.std, np.std(values), rtol=1e-6, atol=1e-3)
