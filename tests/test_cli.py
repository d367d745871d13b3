"""Exit codes follow one rule, and a user's mistake gives a one-line message, never a traceback."""

import errno
import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kwise.cli import main
from kwise.train.options import recipes_command

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
        ("train . --model m --output y", 2, ".: Is a directory; give a file"),
        ("train bad.gz --model m --output y", 1, "bad.gz: not a complete gzip file"),
        (
            "train twice.jsonl --model m --output y",
            1,
            "twice.jsonl:1: responses: [0] and [1] are the same text",
        ),
        ("export nowhere y", 2, "CHECKPOINT nowhere: "),
        ("export . y", 2, "CHECKPOINT .: cannot be read: "),
        ("score --response a", 2, "--response needs --prompt"),
        ("score --prompt p --response b c", 2, "write --response before each response"),
        (
            "score --prompt p --response a --server localhost:abc",
            2,
            "the port is 'abc'; it must be",
        ),
        (
            "train good.jsonl --model m --output /proc/x/y",
            2,
            "--output /proc/x/y: nothing can be written in /proc: No such file or directory",
        ),
        ("export m /proc/x", 2, "ARTIFACT /proc/x: nothing can be written in /proc: No such file"),
        (
            "train good.jsonl --model good.jsonl --output y",
            2,
            "it must be the directory of a",
        ),
        ("export . y", 2, "CHECKPOINT .: cannot be read: the directory has no config.json"),
        ("serve nowhere", 2, "ARTIFACT nowhere: there is no such directory"),
        ("serve . --port 7 --http-port 7", 2, "--http-port: 7 is --port as well; give two diff"),
        ("serve . --max-http-connections 5", 2, "--max-http-connections is for HTTP; give --http"),
        ("serve . --http-receive-s 5", 2, "--http-receive-s is for HTTP; give --http-port too"),
        ("serve good.jsonl", 2, "ARTIFACT good.jsonl: is not a directory"),
        ("export ../none/at/all y", 2, "CHECKPOINT ../none/at/all: there is no such file or dire"),
        ("compare --prompt p --response a", 2, "a comparison needs at least two responses"),
        ("scores", 2, "invalid choice: 'scores'"),
        ("score --bogus", 2, "kwise score: unrecognized arguments: --bogus; `kwise score --help`"),
        ("serve . --port x", 2, "kwise serve: --port: 'x' is not an integer; `kwise serve --help`"),
        ("serve . --slow-call-s x", 2, "--slow-call-s: 'x' is not a number"),
        ("top --interval-s x", 2, "--interval-s: 'x' is not a number"),
        ("serve . --log-level INFO", 2, "--log-level: 'INFO' is not one of debug, info, "),
        ("serve . --ensemble", 2, "--ensemble: expected at least one argument"),
        ("serve a=", 2, "ARTIFACT 'a=': it names no directory; give NAME=DIRECTORY"),
        ("serve . --otlp-endpoint localhost:4317", 2, "--otlp-endpoint is 'localhost:4317'; it mu"),
        ("models localhost:1 --load a=", 2, "--load is 'a='; it must have the form NAME=DIRECTORY"),
        ("models localhost:1 --timeout-s 0", 2, "--timeout-s must be above 0"),
        ("info . --model a", 2, "--model a is for servers"),
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
    "command", ["data", "train", "export", "rerank", "serve", "score", "rank", "compare"]
)
def test_help_of_every_command_shows_no_empty_default(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert kwise(command, "--help") == 0
    assert "(default: )" not in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kwise.bulk.commands.score.run_report", interrupted)
    assert kwise("score", "--prompt", "p", "--response", "a") == 130
    assert capsys.readouterr().err == ""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return a command that ends in a bug, and write tracebacks to `tmp_path`."""

    def fail(*_: object) -> int:
        nothing: dict[str, int] = {}
        return nothing["rewards"]

    monkeypatch.setattr("kwise.bulk.commands.score.run_report", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return ["score", "--prompt", "p", "--response", "a"]


def test_a_bug_is_told_in_one_line_that_names_the_file_with_the_traceback(
    broken: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kwise(*broken) == 1
    told = capsys.readouterr().err
    (file,) = tmp_path.glob("kwise-*.log")
    assert told == (
        "kwise score: unexpected error: KeyError: 'rewards' (at kwise/bulk/commands/score.py:"
        f"{told.partition('score.py:')[2].partition(')')[0]}); please report this as a bug of "
        f"kwise, with the traceback in {file}\n"
    )
    assert file.read_text().startswith("Traceback (most recent call last)")


@pytest.mark.parametrize("first", [True, False])
def test_debug_shows_the_traceback_before_and_after_the_command(
    broken: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], first: bool
) -> None:
    assert kwise(*(["--debug", *broken] if first else [*broken, "--debug"])) == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last)")
    assert told.splitlines()[-1].startswith("kwise score: unexpected error: KeyError: ")
    assert list(tmp_path.iterdir()) == []


def test_help_keeps_the_case_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    """It said "Serve an artifact over grpc"."""
    kwise("serve", "--help")
    assert "Serve an artifact over gRPC and HTTP." in capsys.readouterr().out
    kwise("bench", "train", "--help")
    assert "TRL's RewardTrainer" in capsys.readouterr().out


def in_a_process(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )


def test_what_other_libraries_print_is_silenced_but_for_errors() -> None:
    """bitsandbytes advised to install a package at every training; bars were drawn into logs."""
    ended = in_a_process("""
import logging, warnings
from kwise.libraries.output import silence_libraries
silence_libraries()
from tqdm.auto import tqdm
logging.getLogger("bitsandbytes.backends").warning("pip install kernels")
warnings.warn("tracing")
list(tqdm(range(3)))
logging.getLogger("kwise.engine").warning("ours")
logging.getLogger("torch").error("theirs")
""")
    assert ended.stderr == "ours\ntheirs\n"


def test_sighup_does_not_end_a_server_that_starts(tmp_path: Path) -> None:
    """It ended the process while its modules were imported, which takes half a second."""
    ended = in_a_process(f"""
import os, signal, sys
class Hangup:
    def find_spec(self, name, *_):
        if name == "kwise.engine.server.command":
            os.kill(os.getpid(), signal.SIGHUP)
sys.meta_path.insert(0, Hangup())
from kwise.cli import main
sys.exit(main(["serve", {str(tmp_path / "none")!r}]))
""")
    assert ended.returncode == 2


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """gRPC printed a line of its own beside it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = in_a_process(f"""
import sys
from kwise.cli import main
sys.exit(main(["serve", {str(tmp_path)!r}, "--port", "{port}"]))
""")
    assert ended.stderr == (
        f"kwise serve: --host 127.0.0.1 --port {port}: cannot listen there: Address already in "
        "use; stop the other server, or choose another --port\n"
    )
    assert ended.returncode == 2


def test_a_directory_without_an_artifact_is_named_in_full(tmp_path: Path) -> None:
    ended = in_a_process(f"""
import os, sys
from kwise.cli import main
os.chdir({str(tmp_path)!r})
sys.exit(main(["serve", ".", "--port", "0"]))
""")
    assert f"{tmp_path}/manifest.json: no such file; is this directory an" in ended.stderr
    assert ended.returncode == 1


@pytest.mark.parametrize(("errors", "code"), [(subprocess.PIPE, 0), (subprocess.STDOUT, 1)])
def test_a_reader_that_goes_away_is_no_error(errors: int, code: int) -> None:
    """`kwise recipes | head -1` ended with a line on standard error.

    If standard error has no reader either, a line of progress may have ended the work.
    """
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "kwise", "recipes"], stdout=closed, stderr=errors, check=False
        )
    assert (ended.returncode, ended.stderr or b"") == (code, b"")


def test_another_broken_pipe_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that had died ended a command with the exit code of success."""

    def fail(*_: object) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(recipes_command, "run", fail)
    assert main(["recipes"]) == 1
    assert "Broken pipe" in capsys.readouterr().err
