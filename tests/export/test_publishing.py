"""Replacing an artifact loses nothing: only artifacts are replaced, and only by a whole one."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kwise.engine.artifact.manifest import Manifest
from kwise.engine.artifact.names import MANIFEST
from kwise.engine.artifact.read import read_artifact
from kwise.engine.precision import Precision
from kwise.errors import ConfigError
from kwise.export import exporter
from kwise.export.parity import ParityError, allowed_difference
from kwise.export.publishing import check_destination, publish_artifact
from tests.exports import export_quietly


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy that tests may change. No hard links: onnx refuses files that have several."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_an_artifact_may_be_replaced_even_a_damaged_one(artifact: Path) -> None:
    check_destination(artifact, overwrite=True)
    (artifact / "model.onnx").unlink()
    check_destination(artifact, overwrite=True)
    with pytest.raises(ConfigError, match="exists; choose another directory"):
        check_destination(artifact, overwrite=False)


def test_any_other_directory_is_refused_with_the_reason(artifact: Path, tmp_path: Path) -> None:
    """A browser extension has a manifest.json too; its directory was deleted whole."""
    (tmp_path / "extension").mkdir()
    for content in ('{"name": "extension", "manifest_version": 3}', "[]", "not JSON"):
        (tmp_path / "extension" / MANIFEST).write_text(content)
        with pytest.raises(ConfigError, match=r"it has no readable manifest\.json"):
            check_destination(tmp_path / "extension", overwrite=True)
    (artifact / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"it contains thesis\.tex"):
        check_destination(artifact, overwrite=True)
    (artifact / "thesis.tex").unlink()
    edited = {**json.loads((artifact / MANIFEST).read_text()), "name": "other"}
    (artifact / MANIFEST).write_text(json.dumps(edited))
    with pytest.raises(ConfigError, match="the checksum in"):
        check_destination(artifact, overwrite=True)


def test_an_artifact_of_schema_version_4_may_be_replaced(artifact: Path) -> None:
    """Its fingerprint was a checksum of everything."""
    old = json.loads((artifact / MANIFEST).read_text()) | {"schema_version": 4}
    del old["checksum"], old["fingerprint"]
    old["fingerprint"] = sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    (artifact / MANIFEST).write_text(json.dumps(old))
    check_destination(artifact, overwrite=True)


def test_two_exports_of_a_checkpoint_have_one_fingerprint(
    artifact: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    first = read_artifact(artifact).manifest
    again = read_artifact(
        export_quietly(tiny_checkpoint, tmp_path / "again", name="again")
    ).manifest
    assert again.fingerprint == first.fingerprint
    assert again.checksum != first.checksum


def test_any_user_can_read_a_published_artifact(artifact: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir(0o700)
    (work / "new").touch(0o600)
    publish_artifact(work, artifact)
    assert names(artifact) == {"new"}
    assert [path.stat().st_mode & 0o777 for path in (artifact, artifact / "new")] == [0o755, 0o644]
    assert names(tmp_path) == {"artifact"}


def test_an_export_whose_parity_fails_leaves_the_old_artifact(
    artifact: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    before = read_artifact(artifact).manifest.checksum
    with pytest.raises(ParityError, match="is allowed"):
        export_quietly(tiny_checkpoint, artifact, overwrite=True, tolerance=1e-12)
    assert read_artifact(artifact).manifest.checksum == before
    assert names(tmp_path) == {"artifact"}
    export_quietly(tiny_checkpoint, artifact, overwrite=True, name="new")
    assert read_artifact(artifact).manifest.name == "new"
    assert names(tmp_path) == {"artifact"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_during_an_export_is_not_deleted(
    artifact: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """The destination was checked only before an export, which takes minutes."""
    destination = artifact if overwrite else artifact.with_name("new")

    def prove(manifest: Manifest, *args: Any) -> Manifest:
        destination.mkdir(exist_ok=True)
        (destination / "thesis.tex").touch()
        return manifest

    monkeypatch.setattr(exporter, "_prove", prove)
    reason = r"it contains thesis\.tex" if overwrite else "exists; choose another directory"
    with pytest.raises(ConfigError, match=reason):
        export_quietly(tiny_checkpoint, destination, overwrite=overwrite)
    assert names(destination) >= {"thesis.tex"}
    assert names(artifact.parent) == {"artifact", destination.name}


def test_the_tolerance_is_in_units_of_the_reward_or_of_their_spread_where_that_is_larger(
    tiny_artifact: Path,
) -> None:
    assert allowed_difference(1e-4, [0.1, 0.2]) == 1e-4
    assert allowed_difference(1e-4, [-30.0, 30.0]) == pytest.approx(3e-3)
    manifest = read_artifact(tiny_artifact).manifest
    bounds = manifest.error_bounds[Precision.FP32]
    assert (
        bounds.max_error == bounds.max_batch_change == 1e-4 * max(1.0, bounds.report["reward_std"])
    )


def test_no_tolerance_above_1e3_can_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tolerance is 0\.002; it must be at most 0\.001"):
        export_quietly(tmp_path, tmp_path, tolerance=2e-3)
