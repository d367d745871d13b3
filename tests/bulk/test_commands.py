"""`kwise score`, `rank` and `compare` over a real socket, and the parts that need no server."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.bulk.commands.shell import group_of_row
from kwise.bulk.commands.table import clip, table, width
from kwise.bulk.input.row import BadRow
from kwise.cli import main
from kwise.types import Priority
from tests.client.test_client import nowhere
from tests.length_server import serving

__all__ = ["nowhere"]

texts = st.text(st.characters(exclude_categories=["Cs"]))


def run_command(command: str, target: str, path: Path, *lines: dict[str, Any]) -> int:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return main([command, str(path), "--server", target])


@pytest.mark.parametrize("command", ["score", "rank", "compare"])
def test_a_response_that_failed_is_told_by_line_and_place_and_exits_with_1(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command said nothing and exited with 0."""
    path = tmp_path / "groups.jsonl"
    good, half = (
        {"prompt": "p", "responses": ["a", "bc"]},
        {"prompt": "p", "responses": ["a", "bad"]},
    )
    with serving() as target:
        assert run_command(command, target, path, good) == 0
        assert capsys.readouterr().err == ""
        assert run_command(command, target, path, good, half, good) == 1
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "not scored: 1 response",
        f"  1 × {path}:2: responses[1]: the conversation is too long",
    ]
    assert len(output.out.splitlines()) == 3


def test_every_line_of_the_input_has_one_in_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that the client itself refused had no output, so lines did not correspond."""
    path = tmp_path / "groups.jsonl"
    good = {"prompt": "p", "responses": ["a", "bc"], "id": 1}
    path.write_text(
        "\n".join(["not JSON", json.dumps(good), json.dumps({"id": 2}), "", json.dumps(good), "[]"])
    )
    with serving() as target:
        assert main(["score", str(path), "--server", target]) == 1
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line.get("id") for line in lines] == [None, 1, 2, 1, None]
    assert ["error" in line for line in lines] == [True, False, True, False, True]
    assert output.err.splitlines() == [
        "not scored: 3 rows",
        f"  1 × {path}:1: not JSON: Expecting value at column 1",
        f"  1 × {path}:3: prompt: the row has no such column; it has 'id'",
        f"  1 × {path}:6: a JSON object is expected, not a list",
    ]
    assert lines[2]["error"] == {
        "code": "INVALID_ARGUMENT",
        "message": f"{path}:3: prompt: the row has no such column; it has 'id'",
    }


@pytest.mark.parametrize("name", ["groups.jsonl.gz", "groups", "-"])
def test_gzipped_groups_are_read_whatever_the_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = gzip.compress(json.dumps({"prompt": "p", "responses": ["a", "bc"]}).encode() + b"\n")
    monkeypatch.chdir(tmp_path)
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
    else:
        Path(name).write_bytes(packed)
    with serving() as target:
        assert main(["rank", name, "--server", target]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == [2, 1]


def test_a_gzip_file_that_is_cut_short_is_told_and_the_next_file_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps({"prompt": "p", "responses": ["a"]}).encode() + b"\n"
    cut, whole = tmp_path / "cut.gz", tmp_path / "whole"
    cut.write_bytes(gzip.compress(line)[:-9])
    whole.write_bytes(line)
    with serving() as target:
        assert main(["score", str(cut), str(whole), "--server", target]) == 1
    output = capsys.readouterr()
    assert "not read to the end: 1 file\n" in output.err
    assert "not scored" not in output.err
    assert f"  1 × {cut}:1: not a complete gzip file (" in output.err
    assert "rewards" in json.loads(output.out.splitlines()[-1])


def test_no_line_of_the_output_has_what_is_no_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python writes NaN and Infinity, which other readers of JSON refuse."""
    path = tmp_path / "groups.jsonl"
    path.write_text(
        '{"prompt": "p", "responses": ["infinite", "infinite"], "id": NaN, '
        '"more": [1e999, -Infinity, 1, "NaN"]}\n'
    )
    with serving() as target:
        assert main(["compare", str(path), "--server", target]) == 0

    def refused(constant: str) -> None:
        raise AssertionError(constant)

    told = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert (told["id"], told["more"]) == (None, [None, None, 1, "NaN"])
    assert [reward["value"] for reward in told["rewards"]] == [None, None]
    assert told["comparisons"][0]["margin"] is None


def test_comparing_one_response_is_refused_as_the_server_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "groups.jsonl"
    with serving() as target:
        assert run_command("compare", target, path, {"prompt": "p", "responses": ["a"]}) == 1
        output = capsys.readouterr()
        problem = f"{path}:1: responses: a comparison needs at least two responses"
        assert problem in output.err
        assert json.loads(output.out)["error"] == {"code": "INVALID_ARGUMENT", "message": problem}
        assert run_command("score", target, path, {"prompt": "p", "responses": ["a"]}) == 0


def test_a_command_without_a_server_names_the_address(
    nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "score",
        "--prompt",
        "p",
        "--response",
        "a",
        "--server",
        nowhere,
        "--timeout-s",
        "0.2",
    ]
    assert main(arguments) == 1
    problem = f"kwise score: UNAVAILABLE at {nowhere}: no server was ready within 0.2 s: "
    assert capsys.readouterr().err.startswith(problem)


@pytest.mark.parametrize("command", ["score", "rank", "compare"])
def test_an_output_is_a_file_that_is_not_replaced(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "groups.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": "p", "responses": ["a", "b" * number], "id": number} for number in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving() as target:
        words = [command, str(path), "--server", target]
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert main([*words, "--output", str(output)]) == 0
        assert output.read_text() == shown
        assert "9 groups with 18 responses scored" in capsys.readouterr().err
        assert main([*words, "--output", str(output)]) == 2
        assert "exists; choose another name" in capsys.readouterr().err
        assert main([*words, "--output", str(output), "--resume"]) == 0
        assert "is complete: all 9 rows" in capsys.readouterr().err
        assert main([*words, "--output", str(output), "--overwrite"]) == 0
    assert output.read_text() == shown


def test_a_group_of_the_command_line_has_no_place_in_a_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving() as target:
        arguments = ["--prompt", "p", "--response", "a", "--response", "bad", "--server", target]
        assert main(["score", *arguments]) == 1
    output = capsys.readouterr()
    assert "  1 × --prompt: responses[1]: the conversation is too long" in output.err
    assert json.loads(output.out)["rewards"][0]["value"] == 1


def test_a_row_may_have_texts_objects_or_ids() -> None:
    row = {"prompt": "p", "responses": [{"text": "a", "rank": 1}, "b"], "source": 7}
    group = group_of_row(row, Priority.BULK)
    assert (group.responses, group.priority) == (("a", "b"), Priority.BULK)
    assert group_of_row({"prompt": [1], "responses": [[2]]}, Priority.BULK).responses == ((2,),)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([], "a JSON object is expected, not a list"),
        ({"prompt": None, "responses": ["a"]}, "prompt: it must be a text, messages or token ids,"),
        ({"prompt": "p", "responses": [None]}, "responses[0]: it must be a text or token ids, not"),
        ({"prompt": "p", "responses": [[1, "a"]]}, "responses[0][1]: it must be an int, not str"),
        ({"prompt": "p"}, "responses: the row has no such column"),
        ({"prompt": "p", "responses": []}, "at least one response"),
        ({"prompt": "p", "responses": [{"txt": "a"}]}, "responses[0]: the response has no 'text'"),
        (
            {"prompt": "p", "responses": ["a", "b"], "pairs": [[0, 2]]},
            "pairs[0]: (0, 2) names a response that does not exist; there are 2",
        ),
        ({"prompt": "\ud800", "responses": ["a"]}, "prompt: it is not Unicode text: a lone surr"),
        (
            {"prompt": "p", "system": "Answer in Latin.", "responses": ["a"]},
            "system: it has a system message, which would not be scored",
        ),
        (
            {"prompt": "p", "responses": [{"text": "a", "reasoning_content": "r"}]},
            "responses[0]: it has 'reasoning_content', reasoning beside the answer",
        ),
    ],
)
def test_a_bad_row_says_why(row: Any, says: str) -> None:
    with pytest.raises(BadRow) as raised:
        group_of_row(row, Priority.BULK)
    assert says in str(raised.value)


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert [width(text) for text in ("abc", "日本", "e\u0301", "한글", "🙂")] == [3, 4, 1, 4, 2]
    assert clip("日本語", 5) == "日本…"
    assert clip("日本語", 4) == "日…"
    assert clip("a\x1b[31mb\nc", 80) == "a [31mb c"


@given(text=texts, columns=st.integers(1, 40))
def test_clipped_text_fits(text: str, columns: int) -> None:
    assert width(clip(text, columns)) <= columns


@given(cells=st.lists(texts, min_size=1), columns=st.integers(30, 120))
def test_no_line_of_a_table_is_wider_than_the_terminal(cells: list[str], columns: int) -> None:
    rows = [(str(number), "-1.2345", cell) for number, cell in enumerate(cells)]
    lines = table(("rank", "reward", "response"), rows, columns)
    assert len(lines) == len(rows) + 1
    assert all(width(line) <= columns for line in lines)


@pytest.mark.parametrize("command", ["score", "rank", "compare"])
def test_help_of_each_command(command: str) -> None:
    program = [sys.executable, "-m", "kwise", command, "--help"]
    finished = subprocess.run(program, capture_output=True, text=True, check=True)
    assert "--response" in finished.stdout
