"""Exit codes follow one rule, and a user's mistake gives a one-line message, never a traceback."""

import gzip
import json
from pathlib import Path

import pytest

from kwise.cli import main

GOOD = json.dumps(
    {"prompt": "p", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}
)
CONTRADICTION = json.dumps(
    {"prompt": "p", "responses": [{"text": "a", "rank": 1}, {"text": "a", "rank": 2}]}
)


def kwise(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as ended:  # argparse exits by itself
        return int(ended.code or 0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("train", 2, "the following arguments are required: DATA"),
        ("train good.jsonl --output y", 2, "--model is required"),
        ("train good.jsonl --model m", 2, "--output is required"),
        (
            "train good.jsonl --model m --output y --epochs 0",
            2,
            "--epochs is 0.0; it must be greater than 0",
        ),
        (
            "train good.jsonl --model nowhere --output y",
            2,
            "--model nowhere: ",
        ),
        ("train good.jsonl --model . --output y", 2, "--model .: cannot be read: "),
        (
            "train good.jsonl --model nowhere.gguf --output y",
            2,
            "--model nowhere.gguf: ",
        ),
        ("train nofile --model m --output y", 2, "nofile: No such file or directory"),
        ("train . --model m --output y", 2, ".: Is a directory"),
        ("train bad.gz --model m --output y", 1, "bad.gz: not a complete gzip file"),
        (
            "train twice.jsonl --model m --output y",
            1,
            "twice.jsonl:1: responses: [0] and [1] are the same text",
        ),
        ("export nowhere y", 2, "CHECKPOINT nowhere: "),
        ("export . y", 2, "CHECKPOINT .: cannot be read: "),
        ("score --response a", 2, "--response needs --prompt"),
        ("compare --prompt p --response a", 2, "a comparison needs at least two responses"),
        ("scores", 2, "invalid choice: 'scores'"),
        ("score --bogus", 2, "usage: kwise score"),
        ("score --bogus", 2, "unrecognized arguments: --bogus"),
        ("train good.jsonl --model m --output y --epoch 2", 2, "unrecognized arguments: --epoch 2"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_its_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    code: int,
    says: str,
) -> None:
    """The code is 2 for a wrong command line and 1 for bad data, for every command."""
    (tmp_path / "good.jsonl").write_text(GOOD)
    (tmp_path / "twice.jsonl").write_text(CONTRADICTION)
    (tmp_path / "bad.gz").write_bytes(gzip.compress(GOOD.encode())[:-9])
    monkeypatch.chdir(tmp_path)
    assert kwise(*arguments.split()) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert says in output.err
    assert max(map(len, output.err.splitlines())) < 600


@pytest.mark.parametrize(
    "command", ["data", "train", "export", "serve", "score", "rank", "compare"]
)
def test_help_of_every_command_shows_no_empty_default(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert kwise(command, "--help") == 0
    assert "(default: )" not in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kwise.client.commands.score.run_report", interrupted)
    assert kwise("score", "--prompt", "p", "--response", "a") == 130
    assert capsys.readouterr().err == ""
