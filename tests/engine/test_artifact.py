"""A damaged, edited or incomplete artifact is refused with the name of the file."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kwise.engine.artifact.files import describe_file
from kwise.engine.artifact.manifest import (
    MAX_MANIFEST_BYTES,
    ErrorBounds,
    GraphContract,
    Manifest,
    fingerprint_of,
    read_manifest,
)
from kwise.engine.artifact.names import GOLDEN, MANIFEST, MODEL, TOKENIZER
from kwise.engine.artifact.read import read_artifact
from kwise.engine.precision import Precision
from kwise.errors import ArtifactError

GOLDEN_LINE: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "Hi"}],
    "response": "Hello.",
    "reward": 0.5,
}
GOLDEN_LINES = (json.dumps(GOLDEN_LINE) + "\n").encode() * 2
GRAPH = {
    "file": MODEL,
    "reward_output": "logits",
    "num_tile_groups": 0,
    "separate_last_tokens": False,
    "aligned_keys": False,
}
BOUNDS = {"max_error": 1e-3, "max_batch_change": 1e-3, "report": {}}
MANIFEST_FIELDS = Manifest(
    name="tiny",
    layout="padded",
    graphs={Precision.FP32: msgspec.convert(GRAPH, GraphContract)},
    error_bounds={Precision.FP32: msgspec.convert(BOUNDS, ErrorBounds)},
    max_tokens=64,
    vocab_size=10,
    pad_token_id=None,
    causal=False,
    special_tokens={"cls_token": "[CLS]"},
    files={},
)


def _write(path: Path, *, golden: bytes = GOLDEN_LINES, without: str = "", **changed: Any) -> Path:
    """Write an artifact; its manifest has the `changed` fields and does not list `without`."""
    files = {MODEL: b"model", TOKENIZER: b"{}", GOLDEN: golden}
    for name, data in files.items():
        (path / name).write_bytes(data)
    listed = {name: describe_file(path / name) for name in files if name != without}
    manifest = msgspec.structs.replace(MANIFEST_FIELDS, files=listed)
    content = {**msgspec.to_builtins(manifest), **changed}
    # It is signed, as if an editor who knows the format had written it.
    if "fingerprint" not in changed and isinstance(content["files"], dict):
        content["fingerprint"] = fingerprint_of(content)
    del content["checksum"]
    covered = json.dumps(content, sort_keys=True).encode()
    content["checksum"] = hashlib.sha256(covered).hexdigest()
    (path / MANIFEST).write_text(json.dumps(content))
    return path


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
    """A file that is not listed is not verified: the model could be exchanged unnoticed."""
    with pytest.raises(ArtifactError, match=f"{MANIFEST}: files does not list {name}"):
        read_artifact(_write(tmp_path, without=name))


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    (_write(tmp_path) / f"{MODEL}.data").write_bytes(b"weights")
    with pytest.raises(ArtifactError, match=f"{MODEL}.data: the manifest does not list this file"):
        read_artifact(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("name", None, "name: Expected `str`, got `null`"),
        ("name", "", "name: Expected `str` of length >= 1"),
        ("layout", "trei", "layout: Invalid enum value 'trei'"),
        ("layout", ["trie"], "layout: Expected `str`, got `array`"),
        ("max_tokens", "64", "max_tokens: Expected `int`, got `str`"),
        ("max_tokens", 0, "max_tokens: Expected `int` >= 1"),
        ("max_tokens", True, "max_tokens: Expected `int`, got `bool`"),
        ("vocab_size", 10.5, "vocab_size: Expected `int`, got `float`"),
        ("pad_token_id", "2", "pad_token_id: Expected `int | null`, got `str`"),
        ("pad_token_id", -1, "pad_token_id: Expected `int` >= 0"),
        ("causal", 1, "causal: Expected `bool`, got `int`"),
        ("special_tokens", ["<s>"], "special_tokens: Expected `object`, got `array`"),
        ("special_tokens", {"bos_token": 1}, r"special_tokens[...]: Expected `str`, got `int`"),
        ("graphs", {}, "graphs: Expected `object` of length >= 1"),
        ("graphs", {"fp33": GRAPH}, "key in graphs: Invalid enum value 'fp33'"),
        ("graphs", {"fp32": {"file": MODEL}}, "graphs[...]: Object missing required field"),
        (
            "graphs",
            {"fp32": GRAPH | {"aligned_keys": 1}},
            "graphs[...].aligned_keys: Expected `bool`",
        ),
        (
            "graphs",
            {"fp32": GRAPH | {"num_tile_groups": -1}},
            "num_tile_groups: Expected `int` >= 0",
        ),
        ("graphs", {"fp32": GRAPH | {"file": "../model.onnx"}}, "file: Expected `str` matching"),
        (
            "graphs",
            {"fp32": GRAPH | {"reward_output": ""}},
            "reward_output: Expected `str` of length",
        ),
        ("graphs", {"fp32": GRAPH, "int8": GRAPH}, "error_bounds must have the same precisions"),
        ("cuda_graphs", {"int8": GRAPH}, "cuda_graphs must have no precision that graphs does not"),
        (
            "cuda_graphs",
            {"fp32": GRAPH | {"file": "model.cuda.onnx"}},
            "files does not list model.cuda.onnx",
        ),
        ("error_bounds", {}, "error_bounds must have the same precisions"),
        ("error_bounds", {"fp32": BOUNDS | {"max_error": -1}}, "max_error: Expected `float` >= 0"),
        ("error_bounds", {"fp32": BOUNDS | {"max_error": float("nan")}}, "JSON is malformed"),
        ("error_bounds", {"fp32": BOUNDS | {"max_error": float("inf")}}, "JSON is malformed"),
        (
            "error_bounds",
            {"fp32": BOUNDS | {"max_batch_change": "0.1"}},
            "max_batch_change: Expected `float`, got `str`",
        ),
        ("error_bounds", {"fp32": BOUNDS | {"report": 1}}, "report: Expected `object`, got `int`"),
        ("error_bounds", {"fp32": BOUNDS | {"extra": 1}}, "Object contains unknown field `extra`"),
        ("files", [], "files: Expected `object`, got `array`"),
        ("files", {MODEL: "abc"}, "files[...]: Expected `object`, got `str`"),
        ("files", {MODEL: {"sha256": "abc"}}, "files[...]: Object missing required field `bytes`"),
        ("files", {"../model.onnx": {"sha256": "abc", "bytes": 1}}, "key in files: Expected `str`"),
        ("files", {MODEL: {"sha256": "abc", "bytes": "1"}}, "files[...].bytes: Expected `int`"),
        ("reward_mean", None, "reward_mean: Expected `float`, got `null`"),
        ("reward_std", 0, "reward_std: Expected `float` >= 1e-30"),
        ("reward_std", 1e-200, "reward_std: Expected `float` >= 1e-30"),
        ("reward_mean", -1e300, "reward_mean: Expected `float` >= -1e+38"),
        ("fingerprint", 7, "fingerprint: Expected `str`, got `int`"),
        ("extra", 1, "Object contains unknown field `extra`"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_what_is_expected(
    tmp_path: Path, field: str, value: Any, problem: str
) -> None:
    with pytest.raises(ArtifactError, match=rf"{MANIFEST}: .*{re.escape(problem)}"):
        read_artifact(_write(tmp_path, **{field: value}))


def test_an_artifact_of_another_schema_version_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError,
        match=rf"{MANIFEST}: schema version 4; .* reads 5: export the checkpoint again$",
    ):
        read_artifact(_write(tmp_path, schema_version=4, num_classes=8))


def test_integers_are_numbers_too_and_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    """A caller of `export` may give `reward_mean=5`."""
    assert read_artifact(_write(tmp_path, reward_mean=5)).manifest.reward_mean == 5


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        json.dumps(GOLDEN_LINE).encode().replace(b"Hello", b"H\xe9llo"),
        b"[" * 100_000,
        json.dumps({**GOLDEN_LINE, "prompt": []}).encode(),
        json.dumps({**GOLDEN_LINE, "prompt": "Hi"}).encode(),
        json.dumps({**GOLDEN_LINE, "prompt": [{"role": "user"}]}).encode(),
        json.dumps({**GOLDEN_LINE, "prompt": [{"role": "user", "content": 1}]}).encode(),
        json.dumps({**GOLDEN_LINE, "extra": 1}).encode(),
        json.dumps({**GOLDEN_LINE, "prompt": [{**GOLDEN_LINE["prompt"][0], "extra": 1}]}).encode(),
        json.dumps({**GOLDEN_LINE, "response": None}).encode(),
        json.dumps({**GOLDEN_LINE, "reward": "0.5"}).encode(),
        json.dumps({**GOLDEN_LINE, "reward": float("nan")}).encode(),
    ],
)
def test_a_malformed_golden_line_is_named(tmp_path: Path, line: bytes) -> None:
    good = json.dumps(GOLDEN_LINE).encode()
    with pytest.raises(ArtifactError, match=rf"{GOLDEN}:2: "):
        read_artifact(_write(tmp_path, golden=b"\n".join((good, line, good)) + b"\n"))


def test_an_empty_golden_file_is_refused(tmp_path: Path) -> None:
    """Without them a server would start on any model."""
    with pytest.raises(ArtifactError, match=f"{GOLDEN}: the file is empty"):
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
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"schema_version": 99}',
        b'{"schema_version": 1}',
        b'{"name": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (_write(tmp_path) / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_artifact(tmp_path)


def test_a_manifest_that_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    """The server that loads the artifact would wait for a pipe's writer, and read /dev/zero."""
    path = _write(tmp_path) / MANIFEST
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArtifactError, match=r"manifest\.json: it is a directory, a pipe or a"):
        read_artifact(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match=r"manifest\.json: it is a directory, a pipe or a"):
        read_artifact(tmp_path)


def test_a_manifest_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path) / MANIFEST
    with path.open("ab") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ArtifactError, match="is larger than 16777216 bytes"):
        read_artifact(tmp_path)


def test_a_file_whose_name_is_too_long_is_refused(tmp_path: Path) -> None:
    files = msgspec.to_builtins(read_manifest(_write(tmp_path)).files)
    files["x" * 300] = {"sha256": "", "bytes": 1}
    with pytest.raises(ArtifactError, match="cannot be read: File name too long"):
        read_artifact(_write(tmp_path, files=files))


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path) / MANIFEST
    path.write_text(path.read_text().replace('"max_error": 0.001', '"max_error": 9.0'))
    with pytest.raises(ArtifactError, match="its checksum does not match its content"):
        read_artifact(tmp_path)


def test_a_fingerprint_that_another_model_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="its checksum does not match its content"):
        read_artifact(_write(tmp_path, fingerprint="0" * 64))


@pytest.mark.parametrize(
    ("field", "value", "is_identity"),
    [
        ("name", "other", False),
        ("provenance", {"exported_at": "2026-11-29"}, False),
        ("error_bounds", {"fp32": BOUNDS | {"max_error": 0.5}}, False),
        ("max_tokens", 65, True),
        ("reward_mean", 0.5, True),
        ("pad_token_id", 1, True),
    ],
)
def test_the_fingerprint_is_the_identity_of_the_model(
    tmp_path: Path, field: str, value: object, is_identity: bool
) -> None:
    fingerprints = []
    changes: list[dict[str, Any]] = [{}, {field: value}]
    for number, changed in enumerate(changes):
        (tmp_path / str(number)).mkdir()
        artifact = read_artifact(_write(tmp_path / str(number), **changed))
        fingerprints.append(artifact.manifest.fingerprint)
    assert (fingerprints[0] != fingerprints[1]) == is_identity


def test_golden_rewards_are_not_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Their last digits depend on the machine that exported."""
    other = GOLDEN_LINES.replace(b"0.5", b"0.5000001")
    fingerprints = set()
    for number, golden in enumerate((GOLDEN_LINES, other)):
        (tmp_path / str(number)).mkdir()
        artifact = read_artifact(_write(tmp_path / str(number), golden=golden))
        fingerprints.add(artifact.manifest.fingerprint)
    assert len(fingerprints) == 1


MEMBERS = [{"mean": 0.5, "std": 1.0}, {"mean": 0.0, "std": 2.0}]
MEMBER_LINES = GOLDEN_LINES.replace(b"0.5", b"[0.5, 1.5]")


def test_members_are_part_of_the_fingerprint_and_absent_from_other_manifests(
    tmp_path: Path,
) -> None:
    fingerprints = set()
    for number, std in enumerate((2.0, 3.0)):
        (tmp_path / str(number)).mkdir()
        members = [MEMBERS[0], {"mean": 0.0, "std": std}]
        path = _write(tmp_path / str(number), golden=MEMBER_LINES, members=members)
        artifact = read_artifact(path)
        assert artifact.manifest.num_members == 2
        assert artifact.golden[0].reward == (0.5, 1.5)
        assert read_manifest(path).signed() == artifact.manifest
        fingerprints.add(artifact.manifest.fingerprint)
    assert len(fingerprints) == 2
    assert b"members" not in MANIFEST_FIELDS.to_json().encode()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"members": MEMBERS[:1]}, "members: Expected `array` of length >= 2"),
        ({"members": [*MEMBERS, {"std": 0}]}, "std"),
        ({"members": [*MEMBERS, {"std": 1e-200}]}, "std"),
        ({"members": MEMBERS, "reward_mean": 1.0}, "reward_mean and reward_std must be 0 and 1"),
        ({"members": MEMBERS, "golden": GOLDEN_LINES}, "reward has 1 numbers, and the model 2"),
        ({"golden": MEMBER_LINES}, "reward has 2 numbers, and the model 1 members"),
    ],
)
def test_members_without_a_scale_or_a_golden_reward_each_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_artifact(_write(tmp_path, **{"golden": MEMBER_LINES, **changed}))
