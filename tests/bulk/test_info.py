"""`kwise info` describes an artifact and a running server."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kwise.cli import main
from kwise.client import RewardClient
from kwise.engine.artifact.names import MANIFEST
from kwise.engine.artifact.read import read_artifact
from kwise.types import value_formula
from tests.client.test_client import nowhere
from tests.servers import Server, running_server

__all__ = ["nowhere"]


def facts(text: str) -> dict[str, str]:
    return dict(line.split("  ", 1) for line in text.splitlines())


def test_an_artifact_is_described_and_its_files_are_verified(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tiny_artifact)]) == 0
    manifest = read_artifact(tiny_artifact).manifest
    described = facts(capsys.readouterr().out)
    assert described["fingerprint"].strip() == manifest.fingerprint
    assert described["precisions"].strip().startswith("fp32 (within ")
    assert described["graphs for CUDA"].strip() == "fp32"
    assert main(["info", str(tiny_artifact), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checksum"] == manifest.checksum


def test_the_scale_of_each_member_is_described(
    members_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(members_artifact)]) == 0
    described = facts(capsys.readouterr().out)
    assert described["value"].strip() == "the mean of 3 members"
    assert described["member 3"].strip() == "(raw - 0) / 1"
    with running_server(members_artifact) as server:
        assert main(["info", server.address]) == 0
        described = facts(capsys.readouterr().out)
        assert described["value"].strip() == "the mean of 3 members"
        assert described["member 1"].strip() == "(raw - 0) / 1"


def test_the_model_of_a_server_is_chosen(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_server([f"a={tiny_artifact}", f"b={tiny_artifact}"]) as server:
        for options, name in (((), "a"), (("--model", "b"), "b")):
            assert main(["info", server.address, *options]) == 0
            assert facts(capsys.readouterr().out)["model"].strip() == name
        assert main(["info", server.address, "--model", "c"]) == 1
        assert "this server has 'a', 'b'" in capsys.readouterr().err


@pytest.mark.parametrize("provenance", [{}, {"versions": ["torch", "2.13"]}])
def test_an_artifact_of_unknown_origin_is_described(
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    provenance: dict[str, Any],
) -> None:
    path = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, path)
    manifest = msgspec.structs.replace(read_artifact(path).manifest, provenance=provenance)
    (path / MANIFEST).write_text(manifest.signed().to_json(), encoding="utf-8")
    assert main(["info", str(path)]) == 0
    exported = facts(capsys.readouterr().out)["exported"].strip()
    assert exported == "not known with versions that are not known"


@pytest.mark.parametrize(("version", "shown"), [(None, "None"), ("5", "'5'")])
def test_a_manifest_of_another_schema_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: object, shown: str
) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": version}))
    assert main(["info", str(tmp_path)]) == 1
    assert f"manifest.json: schema version {shown}; this" in capsys.readouterr().err


def test_a_server_is_described_with_its_work(
    tiny_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with RewardClient(tiny_server.address) as client:
        client.score("Why?", ["Because.", "Why not?"])
    assert main(["info", tiny_server.address]) == 0
    described = facts(capsys.readouterr().out)
    assert described["precision"].strip() == "fp32"
    assert int(described["scored"].split()[0]) >= 2
    assert main(["info", tiny_server.address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counters"]["sequences"] >= 2


@pytest.mark.parametrize(
    ("mean", "std", "formula"),
    [
        (0.0, 1.0, "(raw - 0) / 1"),
        (0.25, 0.5, "(raw - 0.25) / 0.5"),
        (-0.25, 0.5, "(raw + 0.25) / 0.5"),
        (-0.0, 1.0, "(raw - 0) / 1"),
    ],
)
def test_the_formula_of_the_value_has_one_sign(mean: float, std: float, formula: str) -> None:
    assert value_formula(mean, std) == formula


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("no/such/directory", "there is no such directory"),
        ("localhost", "must be HOST:PORT"),
        ("a:b:c", "must be HOST:PORT"),
    ],
)
def test_what_is_neither_is_told_so(
    target: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", target]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert problem in line


def test_a_server_that_does_not_answer_is_named(
    nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", nowhere, "--timeout-s", "0.2"]) == 1
    assert nowhere in capsys.readouterr().err
