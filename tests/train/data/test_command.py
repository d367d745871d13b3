"""`kwise data` on the command line: outputs, messages and exit codes."""

import gzip
import io
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.train.data.convert.convert import convert
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.formats.table import FormatName
from kwise.train.data.read import read_rankings
from kwise.train.rankings.errors import MAX_PROBLEMS

PAIRS = [{"prompt": f"P{index}", "chosen": "good", "rejected": "bad"} for index in range(3)]
GOOD = {"prompt": "P", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}


def kwise(*arguments: str | Path) -> int:
    try:
        return main(["data", *map(str, arguments)])
    except SystemExit as ended:  # argparse exits by itself
        return int(ended.code or 0)


def written(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
        encoding="utf-8",
    )
    return path


def files_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_pairs_become_rankings_that_train_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    assert kwise("convert", written(tmp_path / "in.jsonl", *PAIRS), "--output", output) == 0
    assert [(r.prompt[0].content, r.responses, r.ranks) for r in read_rankings(output)] == [
        (f"P{index}", ("good", "bad"), (1, 2)) for index in range(3)
    ]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "trl: 3 rows read, 3 rankings written\n"
    assert files_in(tmp_path) == {"in.jsonl", "out.jsonl"}


def test_several_files_and_a_compressed_output(tmp_path: Path) -> None:
    parts = [written(tmp_path / f"{index}.jsonl", pair) for index, pair in enumerate(PAIRS)]
    output = tmp_path / "out.jsonl.gz"
    assert kwise("convert", *parts, "--output", output) == 0
    first = output.read_bytes()
    assert gzip.decompress(first).count(b"\n") == len(read_rankings(output)) == 3
    assert kwise("convert", *parts, "--output", output, "--overwrite") == 0
    assert output.read_bytes() == first


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["{"], "in.jsonl:3: row: not JSON"),
        (["3"], "in.jsonl:3: row: must be an object"),
        (
            [{"prompt": "P", "chosen": 1, "rejected": "b"}],
            "in.jsonl:3: chosen: must be a string, not a number",
        ),
    ],
)
def test_a_bad_row_leaves_no_output(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: list[Any],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("in.jsonl"), *PAIRS[:2], *rows, PAIRS[2])
    for output in ("out.jsonl", "-"):
        assert kwise("convert", "in.jsonl", "--output", output) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and problem in printed.err and "no rankings written" in printed.err
        assert files_in(tmp_path) == {"in.jsonl"}
    written(Path("in.jsonl"), *rows, *PAIRS)
    problem = problem.replace(":3:", ":1:")
    assert kwise("convert", "in.jsonl", "--skip-bad") == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 3
    assert "skipped: 1 x row: cannot be read (--skip-bad)" in printed.err and problem in printed.err


@pytest.mark.parametrize("num_bad", [MAX_PROBLEMS, MAX_PROBLEMS + 1])
def test_problems_are_reported_up_to_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_bad: int
) -> None:
    assert (
        kwise("convert", "--format", "trl", written(tmp_path / "in.jsonl", *["{"] * num_bad)) == 1
    )
    printed = capsys.readouterr().err.splitlines()
    bad_rows = [line for line in printed if line.startswith(f"{tmp_path / 'in.jsonl'}:")]
    assert sum("cannot be used" not in line for line in bad_rows) == MAX_PROBLEMS
    more = f" (the first {MAX_PROBLEMS} above)" if num_bad > MAX_PROBLEMS else ""
    assert f"{tmp_path / 'in.jsonl'}: {num_bad} of {num_bad} rows cannot be used{more}:" in printed


def test_an_existing_output_is_replaced_only_on_demand_and_by_a_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = written(tmp_path / "out.jsonl", "old")
    good, bad = written(tmp_path / "in.jsonl", *PAIRS), written(tmp_path / "bad.jsonl", *PAIRS, "{")
    assert kwise("convert", good, "--output", output) == 2
    assert "exists; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert kwise("convert", bad, "--output", output, "--overwrite") == 1
    assert output.read_text() == "old\n"
    link = tmp_path / "link.jsonl"
    link.symlink_to(output)
    assert kwise("convert", good, "--output", link, "--overwrite") == 0
    assert link.is_symlink() and len(read_rankings(output)) == 3
    assert files_in(tmp_path) == {"out.jsonl", "in.jsonl", "bad.jsonl", "link.jsonl"}


def test_the_input_may_be_replaced_by_its_own_conversion(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", *PAIRS)
    assert kwise("convert", path, "--output", path, "--overwrite") == 0
    assert len(read_rankings(path)) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("convert", 2, "the following arguments are required: INPUT"),
        ("convert none.jsonl", 2, "none.jsonl: No such file or directory"),
        ("convert in.jsonl none.jsonl", 2, "none.jsonl: No such file or directory"),
        ("convert a/b", 2, "hf download --repo-type dataset a/b"),
        ("convert .", 2, ".: Is a directory; give a file, such as array.json in it"),
        ("convert in.jsonl --output .", 2, "--output . is not a file"),
        (
            "convert in.jsonl --output no/where.jsonl",
            2,
            "--output no/where.jsonl: there is no directory",
        ),
        ("convert in.jsonl --output /dev/null --overwrite", 2, "--output /dev/null is not a file"),
        ("convert in.jsonl --format csv", 2, "'csv' is not one of kwise, hh-rlhf"),
        ("convert in.jsonl --score-column x", 2, "--score-column has no effect on the format trl"),
        (
            "convert in.jsonl --merge annotator",
            2,
            "--merge annotator has no effect on the format trl",
        ),
        ("convert - -", 2, "standard input (-) can be read only once"),
        (
            "convert unknown.jsonl",
            1,
            "unknown.jsonl:1: row: no known format has the keys (text, label)",
        ),
        ("convert unknown.jsonl", 1, "1 rows have no known format; --help lists the formats"),
        ("convert unknown.jsonl --format trl", 1, "unknown.jsonl:1: row: has no 'chosen'"),
        ("convert empty.jsonl", 1, "empty.jsonl: no rankings"),
        (
            "convert tied.jsonl",
            1,
            "skipped: 1 x ranking: all responses are tied (--keep-tied keeps them, and --ties in "
            "kwise train)",
        ),
        ("convert array.json", 1, "array.json: no rankings"),
        ("validate none.jsonl", 2, "none.jsonl: No such file or directory"),
        ("stats in.jsonl --against none.jsonl", 2, "none.jsonl: No such file or directory"),
        ("validate empty.jsonl", 1, "empty.jsonl: no rankings"),
        (
            "validate unknown.jsonl",
            1,
            "no row has a known format, which kwise data convert --help lists; choose one with "
            "kwise data convert unknown.jsonl --output rankings.jsonl --format NAME",
        ),
        ("validate array.json", 1, "array.json: no rankings"),
        ("validate some.parquet", 1, "some.parquet:1: row: not readable as Parquet"),
        ("validate in.jsonl --max-problems 0", 2, "--max-problems is 0; it must be at least 1"),
        ("stats bad.jsonl", 1, "bad.jsonl:1: responses[0]: unknown key 'score '"),
        ("stats empty.jsonl", 1, "empty.jsonl: no rankings"),
        ("stats - --against -", 2, "standard input (-) can be read only once"),
        ("", 2, "the following arguments are required: WHAT"),
    ],
)
def test_a_mistake_is_reported_with_its_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("in.jsonl"), *PAIRS)
    written(Path("unknown.jsonl"), {"text": "a", "label": 1})
    written(Path("empty.jsonl"))
    written(Path("bad.jsonl"), {**GOOD, "responses": [{"text": "a", "score ": 1}] * 2})
    written(Path("array.json"), [])
    written(Path("some.parquet"), "PAR1 and so on")
    written(
        Path("tied.jsonl"),
        {
            "instruction": "P",
            "completions": [{"response": text, "overall_score": 1} for text in "ab"],
        },
    )
    assert kwise(*arguments.split()) == code
    printed = capsys.readouterr()
    assert (
        message in " ".join(printed.err.split())
        and printed.out == ""
        and "Traceback" not in printed.err
    )


def test_validate_checks_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert kwise("validate", written(Path("good.jsonl"), GOOD, "", GOOD)) == 0
    assert capsys.readouterr().out == "good.jsonl: 2 rankings, no problems\n"
    written(Path("bad.jsonl"), GOOD, {**GOOD, "promt": 1}, "{", GOOD, "x", "{")
    assert kwise("validate", "bad.jsonl", "--max-problems", "2") == 1
    assert capsys.readouterr().err.splitlines() == [
        "bad.jsonl:2: ranking: unknown key 'promt'; known keys are annotator, id, metadata, "
        "prompt, responses, source",
        "bad.jsonl:3: row: not JSON: Expecting property name enclosed in double quotes at column 2",
        "bad.jsonl: 4 of 6 rows cannot be used (the first 2 above):",
        "  2 x row: not JSON: Expecting property name enclosed in double quotes at column 2 (first "
        "bad.jsonl:3)",
        "  1 x ranking: unknown key 'promt'; known keys are annotator, id, metadata, prompt, "
        "responses, source (first bad.jsonl:2)",
        "  1 x row: not JSON: Expecting value at column 1 (first bad.jsonl:5)",
    ]


def test_a_ranking_is_written_before_the_next_row_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        num_rows = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            row = json.dumps(PAIRS[0]).encode() + b"\n"
            self.num_rows += 1
            buffer[: len(row)] = row
            return len(row)

    stream = Endless()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(stream)))
    lines = convert(ConvertConfig(input=("-",)), ConversionReport())
    assert sum(1 for _ in islice(lines, 5000)) == 5000
    assert stream.num_rows < 5010


@pytest.mark.parametrize(
    ("begin", "message"),
    [(b"BZh91AY", "compressed with bzip2"), (b"\x28\xb5\x2f\xfd\0", "compressed with zstandard")],
)
def test_other_compressions_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begin: bytes, message: str
) -> None:
    (tmp_path / "in").write_bytes(begin)
    assert kwise("convert", tmp_path / "in") == 1
    assert f"{message}; decompress it first" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["convert", "validate", "stats", "split", "dedupe", "merge"])
def test_help_shows_no_empty_default_and_every_format(
    capsys: pytest.CaptureFixture[str], task: str
) -> None:
    assert kwise(task, "--help") == 0
    shown = capsys.readouterr().out
    assert "(default: )" not in " ".join(shown.split())
    assert task != "convert" or all(f"\n  {name.value}" in shown for name in FormatName)


def test_rankings_that_are_all_tied_are_kept_and_valid_on_demand(tmp_path: Path) -> None:
    tied = {
        "instruction": "P",
        "completions": [{"response": text, "overall_score": 1} for text in "ab"],
    }
    output = tmp_path / "out.jsonl"
    assert (
        kwise("convert", written(tmp_path / "in.jsonl", tied), "--keep-tied", "--output", output)
        == 0
    )
    assert [ranking.ranks for ranking in read_rankings(output, allow_tied=True)] == [(1, 1)]
    assert (kwise("validate", output), kwise("validate", output, "--allow-tied")) == (1, 0)


def process(*arguments: str, pipe_from: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "kwise", "data", *arguments],
        input=pipe_from,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_commands_can_be_joined_by_pipes() -> None:
    rows = "".join(json.dumps(pair) + "\n" for pair in PAIRS).encode()
    converted = process("convert", "-", pipe_from=gzip.compress(rows))
    assert converted.returncode == 0, converted.stderr
    stats = process("stats", "-", "--json", pipe_from=converted.stdout)
    assert json.loads(stats.stdout)["num_rankings"] == 3
    assert (
        process("validate", "-", pipe_from=converted.stdout).stdout
        == b"<stdin>: 3 rankings, no problems\n"
    )


@pytest.mark.parametrize(
    ("arguments", "row", "message"),
    [
        (
            "convert",
            {**PAIRS[0], "chosen": "x" * 1000},
            b"trl: 500 rows read, 500 rankings written\n",
        ),
        ("validate", GOOD, b""),
        ("stats --json", GOOD, b""),
    ],
)
def test_a_reader_that_closes_the_pipe_early_causes_no_error(
    tmp_path: Path, arguments: str, row: dict[str, Any], message: bytes
) -> None:
    """Python flushes once more at exit, which would end in a traceback and the exit code 120."""
    path = written(tmp_path / "in.jsonl", *[row] * 500)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "kwise", "data", *arguments.split(), str(path)],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert (ended.returncode, ended.stderr) == (0, message)


def test_validate_reads_a_named_pipe_only_once() -> None:
    """What is read from `<(zcat FILE)` to recognise the format could not be read again."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as pipe:
        pipe.write(json.dumps(GOOD) + "\n")
    program = [sys.executable, "-m", "kwise", "data", "validate", f"/dev/fd/{read_end}"]
    with os.fdopen(read_end):
        ended = subprocess.run(
            program, pass_fds=[read_end], capture_output=True, check=False, timeout=60
        )
    assert ended.stdout == f"/dev/fd/{read_end}: 1 rankings, no problems\n".encode(), ended.stderr


def test_no_command_on_data_imports_slow_packages(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", GOOD)
    program = (
        "import sys; from kwise.cli import main; main(sys.argv[1:]); "
        "slow = {'torch', 'numpy', 'transformers', 'pyarrow', 'scipy', 'grpc'}; "
        "print(sorted(slow & sys.modules.keys()), file=sys.stderr)"
    )
    for arguments in (("convert", path), ("validate", path), ("stats", path)):
        ended = subprocess.run(
            [sys.executable, "-c", program, "data", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ended.stderr.splitlines()[-1] == "[]", ended.stderr
