"""An artifact that is not whole and sound is refused by the name of its file, and never served."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from kwise.engine.artifact import (
    _FIELDS,
    GOLDEN,
    MANIFEST,
    MODEL,
    TOKENIZER,
    Manifest,
    describe_file,
    read_artifact,
)
from kwise.errors import ArtifactError

GOLDEN_LINE = {"prompt": [{"role": "user", "content": "Hi"}], "response": "Hello.", "reward": 0.5}
GOLDEN_LINES = (json.dumps(GOLDEN_LINE) + "\n").encode() * 2
PROMISE = {"max_difference": 1e-3, "max_change": 1e-3, "report": {}}
MANIFEST_FIELDS = Manifest(
    name="tiny",
    layout="padded",
    precisions={"fp32": PROMISE},
    num_classes=0,
    max_tokens=64,
    vocab_size=10,
    pad_token_id=None,
    causal=False,
    special_tokens={"cls_token": "[CLS]"},
    files={},
)


def _write(path: Path, *, golden: bytes = GOLDEN_LINES, without: str = "", **changed: Any) -> Path:
    """An artifact of the right form, whose manifest has the `changed` fields and lists all files but one."""
    files = {MODEL: b"model", TOKENIZER: b"{}", GOLDEN: golden}
    for name, content in files.items():
        (path / name).write_bytes(content)
    listed = {name: describe_file(path / name) for name in files if name != without}
    manifest = replace(MANIFEST_FIELDS, files=listed)
    _write_manifest(path, {**asdict(manifest), **changed})
    return path


def _write_manifest(path: Path, content: dict[str, Any]) -> None:
    """With the fingerprint of what it says, as an editor who knows the format would write it."""
    if "fingerprint" in content and content["fingerprint"] == "":
        content["fingerprint"] = Manifest(**content).computed_fingerprint()
    (path / MANIFEST).write_text(json.dumps(content))


def test_a_sound_artifact_is_read(tmp_path: Path) -> None:
    artifact = read_artifact(_write(tmp_path))
    assert artifact.manifest.max_tokens == 64
    assert [
        (golden.prompt[0].content, golden.response, golden.reward) for golden in artifact.golden
    ] == [
        ("Hi", "Hello.", 0.5),
        ("Hi", "Hello.", 0.5),
    ]


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, GOLDEN])
def test_a_manifest_that_leaves_out_a_needed_file_is_refused(tmp_path: Path, name: str) -> None:
    """What is not listed is not verified: golden rewards could be emptied, or the model exchanged."""
    with pytest.raises(ArtifactError, match=f"{MANIFEST}: files does not list {name}"):
        read_artifact(_write(tmp_path, without=name))


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    (_write(tmp_path) / f"{MODEL}.data").write_bytes(b"weights")
    with pytest.raises(ArtifactError, match=f"{MODEL}.data: the manifest does not list it"):
        read_artifact(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", None),
        ("layout", "trei"),
        ("layout", ["trie"]),
        ("num_classes", -1),
        ("max_tokens", "64"),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("vocab_size", 10.5),
        ("pad_token_id", "2"),
        ("causal", 1),
        ("special_tokens", ["<s>"]),
        ("special_tokens", {"bos_token": 1}),
        ("precisions", {}),
        ("precisions", {"fp33": PROMISE}),
        ("precisions", {"fp32": PROMISE | {"max_difference": float("nan")}}),
        ("precisions", {"fp32": PROMISE | {"max_difference": float("inf")}}),
        ("precisions", {"fp32": PROMISE | {"max_change": "0.1"}}),
        ("precisions", {"fp32": PROMISE | {"report": 1}}),
        ("precisions", {"fp32": {"max_difference": 1e-3}}),
        ("files", []),
        ("files", {MODEL: "abc"}),
        ("files", {MODEL: {"sha256": "abc"}}),
        ("files", {"../model.onnx": {"sha256": "abc", "bytes": 1}}),
        ("files", {MODEL: {"sha256": "abc", "bytes": "1"}}),
        ("reward_mean", None),
        ("reward_std", 0),
        ("fingerprint", 7),
    ],
)
def test_a_field_of_the_wrong_type_is_named(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ArtifactError, match=rf"{MANIFEST}: {field} must be "):
        read_artifact(_write(tmp_path, **{field: value}))


def test_every_field_has_a_check() -> None:
    assert _FIELDS.keys() | {"schema_version"} == {field.name for field in fields(Manifest)}


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        json.dumps({**GOLDEN_LINE, "prompt": []}).encode(),
        json.dumps({**GOLDEN_LINE, "prompt": "Hi"}).encode(),
        json.dumps({**GOLDEN_LINE, "prompt": [{"role": "user"}]}).encode(),
        json.dumps({**GOLDEN_LINE, "prompt": [{"role": "user", "content": 1}]}).encode(),
        json.dumps({**GOLDEN_LINE, "response": None}).encode(),
        json.dumps({**GOLDEN_LINE, "reward": "0.5"}).encode(),
        json.dumps({**GOLDEN_LINE, "reward": float("nan")}).encode(),
    ],
)
def test_a_malformed_golden_line_is_named(tmp_path: Path, line: bytes) -> None:
    good = json.dumps(GOLDEN_LINE).encode()
    with pytest.raises(ArtifactError, match=rf"{GOLDEN}:2: "):
        read_artifact(_write(tmp_path, golden=b"\n".join((good, line, good)) + b"\n"))


def test_golden_rewards_of_no_conversation_are_refused(tmp_path: Path) -> None:
    """The server would have started on any model."""
    with pytest.raises(ArtifactError, match=f"{GOLDEN}: it holds no conversation"):
        read_artifact(_write(tmp_path, golden=b""))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _change(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, GOLDEN])
@pytest.mark.parametrize("damage", [_cut, _change, Path.unlink])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(_write(tmp_path) / name)
    with pytest.raises(ArtifactError, match=name):
        read_artifact(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "null", '{"schema_version": 99}', '{"schema_version": 1}']
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (_write(tmp_path) / MANIFEST).write_text(content)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_artifact(tmp_path)


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path) / MANIFEST
    path.write_text(path.read_text().replace('"max_difference": 0.001', '"max_difference": 9.0'))
    with pytest.raises(ArtifactError, match="fingerprint"):
        read_artifact(tmp_path)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path) / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra": 1}))
    with pytest.raises(ArtifactError, match="unknown fields"):
        read_artifact(tmp_path)
