"""Servers with int8, and with bf16 if the CPU supports it, keep the manifest's error bounds.

A server that cannot keep them does not start.
"""

from pathlib import Path

import pytest
from msgspec import structs

from kwise.client import RewardClient
from kwise.engine.artifact.manifest import Manifest
from kwise.engine.artifact.names import MANIFEST
from kwise.engine.artifact.read import read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.model.runtime.open import cpu_has_bf16
from kwise.engine.precision import Precision
from kwise.engine.scorer import Scorer
from kwise.errors import ArtifactError, ConfigError
from tests.exports import export_quietly
from tests.real_data import read_examples
from tests.servers import PATIENCE_S, raw_rewards, running_server


@pytest.fixture(scope="module")
def artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("precisions") / "tiny"
    return export_quietly(tiny_checkpoint, path, dtype="fp32,bf16,int8", min_agreement=0.9)


@pytest.mark.parametrize(
    ("precision", "runtime"),
    [
        (Precision.INT8, "onnxruntime"),
        pytest.param(
            Precision.BF16,
            "openvino",
            marks=pytest.mark.skipif(not cpu_has_bf16(), reason="a CPU without bf16 products"),
        ),
    ],
)
def test_a_server_says_its_precision_and_stays_within_the_error_bounds(
    artifact: Path, precision: Precision, runtime: str
) -> None:
    """GetModel and each reply name the precision: alone, in a group and from the cache."""
    bounds = read_artifact(artifact).manifest.error_bounds[precision]
    name = precision.value
    groups = [
        (prompt[-1]["content"], responses)
        for prompt, responses in read_examples()
        if len(prompt) == 1
    ][:6]
    with running_server(artifact) as exact, running_server(artifact, "--precision", name) as server:
        with (
            RewardClient(exact.address, timeout_s=PATIENCE_S) as reference,
            RewardClient(server.address, timeout_s=PATIENCE_S) as client,
        ):
            assert (reference.get_model().precision, client.get_model().precision) == ("fp32", name)
            assert client.get_model().runtime.startswith(runtime)
            differences = []
            for prompt, responses in groups:
                expected = raw_rewards(reference.score(prompt, responses))
                scored = client.score(prompt, responses)
                assert (scored.precision, scored.runtime) == (name, client.get_model().runtime)
                assert (
                    client.compare(prompt, responses).precision
                    == client.rank(prompt, responses).precision
                    == name
                )
                found = raw_rewards(scored)
                differences += [abs(a - b) for a, b in zip(found, expected, strict=True)]
            assert 0 < sum(differences) / len(differences) <= bounds.max_error
        assert name in server.log.text
        with RewardClient(server.address, timeout_s=PATIENCE_S) as client:
            prompt, responses = groups[0]
            turned = raw_rewards(client.score(prompt, [*responses[::-1], "Something else."]))[:-1][
                ::-1
            ]
            assert turned == pytest.approx(
                raw_rewards(client.score(prompt, responses)), abs=bounds.max_batch_change
            )


def test_the_first_precision_that_the_artifact_holds_is_served(artifact: Path) -> None:
    config = EngineConfig(precision="fp16,int8,fp32")
    assert Scorer.load(artifact, config).precision is Precision.INT8
    with pytest.raises(ConfigError, match="--precision fp16: the artifact holds fp32, bf16, int8"):
        Scorer.load(artifact, EngineConfig(precision="fp16"))


def test_a_server_that_cannot_keep_the_error_bounds_does_not_start(
    artifact: Path, tmp_path: Path
) -> None:
    """The manifest allows less error than int8 has. fp32 of the same artifact is served."""
    manifest = read_artifact(artifact).manifest
    strict = structs.replace(manifest.error_bounds[Precision.INT8], max_error=1e-9)
    changed = structs.replace(
        manifest, error_bounds=manifest.error_bounds | {Precision.INT8: strict}
    )
    copy = _copy(artifact, tmp_path / "copy", changed)
    with pytest.raises(
        ArtifactError,
        match=r"golden\.jsonl:1: .* in int8 gives .* the largest difference allowed is 1e-09",
    ):
        Scorer.load(copy, EngineConfig(precision="int8"))
    assert Scorer.load(copy).precision is Precision.FP32


def _copy(artifact: Path, path: Path, manifest: Manifest) -> Path:
    path.mkdir()
    for file in artifact.iterdir():
        if file.name != MANIFEST:
            (path / file.name).symlink_to(file)
    (path / MANIFEST).write_text(manifest.signed().to_json())
    return path
