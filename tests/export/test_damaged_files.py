"""A damaged file of a checkpoint, or a faulty template, is one line in training and in export."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kwise.cli import main
from kwise.engine.artifact.manifest import read_manifest
from kwise.errors import ArtifactError
from tests.tiny_models import GROUPED, byte_tokenizer, tiny_model

GOOD = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def in_config(**keys: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | keys))

    return edit


def cut_tokenizer(path: Path) -> None:
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text[:2000])


DAMAGES = {
    "a tokenizer without a model": lambda path: (path / "tokenizer.json").write_text("{}"),
    "a tokenizer that is cut": cut_tokenizer,
    "a config that is a list": lambda path: (path / "config.json").write_text("[]"),
    "layers as a string": in_config(num_hidden_layers="2"),
    "no heads": in_config(num_attention_heads=0),
    "labels as a list": in_config(id2label=["LABEL_0"]),
    "a limit as a string": in_config(max_position_embeddings="2048"),
    "no list of classes": in_config(architectures=True),
    "layer types as a number": in_config(layer_types=2),
    "code as a string": in_config(auto_map="modeling.Model"),
    "weights that are cut": lambda path: (path / "model.safetensors").write_bytes(b"\x08"),
}
TEMPLATES = {
    "syntax": b"{% for m in messages %}{{ m.content }}",
    "latin-1": GOOD.encode() + b"\xe9",
    "type": b"{% for m in messages %}{{ m.content + 1 }}{% endfor %}",
    "own words": b"{{ raise_exception('no system turn') }}",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged") / "good"
    return tiny_model("Llama", GROUPED, byte_tokenizer(), path, pad_token_id=5)


@pytest.fixture(scope="module")
def rankings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rankings") / "rankings.jsonl"
    responses = [{"text": "sun", "rank": 1}, {"text": "no sun", "rank": 2}]
    lines = [{"prompt": f"Say {word}.", "responses": responses} for word in ("sun", "fun")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def told_by(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line on standard error of a command that must refuse its input."""
    assert main([str(argument) for argument in arguments]) in (1, 2)
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_with_the_checkpoint(
    damage: str,
    checkpoint: Path,
    rankings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    DAMAGES[damage](model)
    output = tmp_path / "output"
    exported = told_by(["export", model, output], capsys)
    trained = told_by(["train", rankings, "--model", model, "--output", output], capsys)
    assert exported.startswith(f"kwise export: CHECKPOINT {model}: ")
    assert trained.startswith(f"kwise train: --model {model}: ")
    assert "unexpected error" not in exported + trained
    assert not output.exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_faulty_template_is_told_in_one_line(
    template: str,
    checkpoint: Path,
    rankings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = tmp_path / "template.jinja", tmp_path / "output"
    path.write_bytes(TEMPLATES[template])
    options = ["--chat-template", path]
    for told in (
        told_by(["export", checkpoint, output, *options], capsys),
        told_by(["train", rankings, "--model", checkpoint, "--output", output, *options], capsys),
    ):
        assert told.startswith("kwise ") and "unexpected error" not in told
        assert "template" in told or str(checkpoint) in told


def test_an_artifact_in_place_of_a_checkpoint_is_told(
    tiny_artifact: Path, rankings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said that config.json should have a model_type, and named all of transformers' models."""
    for told in (
        told_by(["export", tiny_artifact, tmp_path / "a"], capsys),
        told_by(["train", rankings, "--model", tiny_artifact, "--output", tmp_path / "o"], capsys),
    ):
        assert told.endswith(
            f"{tiny_artifact}: is an artifact of kwise export; give the checkpoint that it was "
            "exported from"
        )


def test_a_checkpoint_in_place_of_an_artifact_is_told(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError, match=r"the directory is a checkpoint: export it with kwise"):
        read_manifest(checkpoint)
