"""The check of a model's path: one that does not exist is told before anything is imported."""

from pathlib import Path

import pytest

from kwise.cli import main
from kwise.errors import ConfigError
from kwise.train.options.model_path import check_model_path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "./no",
        "../no",
        "~/no",
        "/no/such",
        "a/b/c",
        "no/",
        "runs/no",
        "m.gguf",
        "C:\\no",
        "a b",
        ".x",
    ],
)
def test_a_path_that_does_not_exist_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--model .*: there is no such file or directory$"):
        check_model_path("--model", name)


@pytest.mark.parametrize("name", ["runs", "./runs", "gpt2", "org/name", "org/name-1.5_b"])
def test_what_exists_and_what_may_be_on_the_hub_passes(name: str) -> None:
    check_model_path("--model", name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train no.jsonl --model runs --output o", "no.jsonl: No such file or directory"),
        ("train a.jsonl --model runs/no --output o", "--model runs/no: there is no such file"),
        ("export runs/no a", "CHECKPOINT runs/no: there is no such file or directory"),
        ("train a.jsonl --model runs --output o --chat-template no.jinja", "no.jinja: No such"),
        ("export runs a --chat-template ./no", "--chat-template ./no: No such file or directory"),
        ("bench graph no", "ARTIFACT no: there is no such directory"),
        ("export runs a --rankings no.jsonl", "no.jsonl: No such file or directory"),
    ],
)
def test_commands_say_so_before_they_read_anything(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    (folder / "a.jsonl").write_text("not read")
    assert main(arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
