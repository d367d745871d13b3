"""Rankings from files of any format: what is converted, what is refused, and what is said."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.read import read_rankings
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from tests.real_data import EXAMPLES

GOOD = {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}
PAIR = {"prompt": "Why?", "chosen": "a", "rejected": "b"}
SAME = {"prompt": "Why?", "chosen": "a", "rejected": "a"}


def written(path: Path, *lines: Any) -> Path:
    content = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    path.write_text(content, encoding="utf-8")
    return path


def test_a_bad_line_is_named_with_its_file_and_number(tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", GOOD, "", {**GOOD, "promt": 1})
    with pytest.raises(RankingsError) as raised:
        read_rankings(path)
    assert str(raised.value).startswith(f"{path}:3: ranking: unknown key 'promt'")


@pytest.mark.parametrize("num_bad", [2, MAX_PROBLEMS, 3 * MAX_PROBLEMS])
def test_bad_lines_are_reported_up_to_a_limit_and_all_are_counted(
    tmp_path: Path, num_bad: int
) -> None:
    path = written(tmp_path / "data.jsonl", GOOD, *["{"] * num_bad, {**GOOD, "promt": 1})
    with pytest.raises(RankingsError) as raised:
        read_rankings(path)
    problems = raised.value.problems
    num_lines = min(num_bad + 1, MAX_PROBLEMS)
    assert all(line.startswith(f"{path}:") for line in problems[:num_lines])
    assert len(problems) == num_lines + 3
    assert f"{num_bad + 1} of {num_bad + 2} rows cannot be used" in problems[-3]
    assert [line.split(" x ")[0] for line in problems[-2:]] == [f"  {num_bad}", "  1"]


@pytest.mark.parametrize(
    ("name", "is_gzip"), [("data", True), ("data.gz", False), ("data.gz", True)]
)
def test_gzip_is_recognised_by_content_and_not_by_name(
    tmp_path: Path, name: str, is_gzip: bool
) -> None:
    content = json.dumps(GOOD).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if is_gzip else content)
    assert len(read_rankings(tmp_path / name)) == 1
    assert main(["data", "validate", str(tmp_path / name)]) == 0


def test_a_truncated_gzip_file_is_reported_after_its_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(gzip.compress(b'{"a"\n' + b"\n" * 100_000)[:-9])
    with pytest.raises(RankingsError) as raised:
        read_rankings(path)
    assert [
        ("not JSON" in problem, "not a complete gzip" in problem)
        for problem in raised.value.problems
    ] == [
        (True, False),
        (False, True),
    ]


def test_the_example_rankings_are_read() -> None:
    lines: list[str] = []
    rankings = read_rankings(EXAMPLES, progress=lines.append)
    assert len(rankings) == 375
    assert {len(ranking.responses) for ranking in rankings} == {3, 4, 5, 6, 7, 8, 9}
    assert not lines


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\ufeff" + json.dumps(PAIR) + "\n" + json.dumps(SAME)),
        ("a.json", json.dumps([PAIR, SAME], indent=1)),
        ("a.csv", "prompt,chosen,rejected\nWhy?,a,b\nWhy?,a,a\n"),
    ],
)
def test_other_formats_are_converted_on_the_way_with_a_line_that_counts(
    tmp_path: Path, name: str, content: str
) -> None:
    path, lines = tmp_path / name, list[str]()
    path.write_text(content, encoding="utf-8")
    [ranking] = read_rankings(path, progress=lines.append)
    assert (ranking.prompt[0].content, ranking.responses, ranking.ranks) == (
        "Why?",
        ("a", "b"),
        (1, 2),
    )
    assert lines == [
        f"{path}: converted from the format trl: 2 rows read, 1 rankings kept, left out: 1 x row: "
        "chosen and rejected are the same"
    ]


def test_rows_of_kwise_are_as_strict_in_an_array_with_a_byte_order_mark(tmp_path: Path) -> None:
    """`kwise data convert` would leave out the tied ranking."""
    tied = {**GOOD, "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]}
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps([GOOD, tied]), encoding="utf-8")
    with pytest.raises(RankingsError, match=r"a\.json:2: responses: all 2 are tied"):
        read_rankings(path)
    assert len(read_rankings(path, allow_tied=True)) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "P", "choosen": "a", "rejected": "b"}], "it resembles trl, but 'choosen' may"),
        ([{"question": "P", "response_j": "a"}], "it resembles stack-exchange-paired, but has no"),
        (
            [{"prompt": "P", "response": "a", "score": 1}],
            "it resembles helpsteer2, but has no 'helpfulness' (kwise data convert has --format "
            "helpsteer2 --score-column NAME for another name)",
        ),
        (
            [{"prompt": "P", "response_1": "a"}, {"prompt": "Q", "response_1": "b"}],
            "  2 x row: no known format has the keys (prompt, response_1)",
        ),
        (
            [{"prompt": "P", "completions": ["a", "b"], "rankings": [1, 2]}],
            "it resembles completions, but has no score or rank",
        ),
        ([{"data": [GOOD]}], "its 'data' holds rows of the format kwise"),
        ([{"prompt": "P", "text": "a"}], "no known format has the keys (prompt, text)\n"),
        ([{"prompt": "P", "responses": ["a", "b"]}], "responses[0]: must be an object"),
        (
            [PAIR, {**PAIR, "chosen": 1}],
            "is in the format trl; kwise data convert {path} --output rankings.jsonl has options",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_format_and_the_command(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    path = written(tmp_path / "a.jsonl", *rows)
    with pytest.raises(RankingsError) as raised:
        read_rankings(path)
    assert message.format(path=path) in f"{raised.value}\n"


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (b"PK\x03\x04", "is compressed with zip"),
        (b"ARROW1\0\0", "not readable as Arrow"),
        (b"SQLite format 3\0", "is an SQLite database"),
        ("{}".encode("utf-16"), "is text in UTF-16; save it as UTF-8 first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"Hello\nworld\n", "is not JSON Lines, a JSON array, Parquet, Arrow, CSV or TSV"),
        (b"a,b;c\n1\n", "no one delimiter"),
        (b'{\n "prompt": "P"\n}', "is JSON over several lines"),
    ],
)
def test_a_file_of_another_kind_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begin: bytes, message: str
) -> None:
    (tmp_path / "a").write_bytes(begin)
    assert main(["data", "validate", str(tmp_path / "a")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'a'}:") and message in line


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.parquet", b"hello\n", "Parquet"),
        ("a.parquet", b"prompt,\xff\0\n", "Parquet"),
        ("a.arrow", b"hello\n", "Arrow"),
        ("a.jsonl.gz", b"hello\n", "gzip"),
        ("a.parquet.gz", gzip.compress(b"hello\n", mtime=0), "Parquet"),
    ],
)
def test_content_that_does_not_fit_the_extension_is_refused(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        RankingsError, match=f"its extension means {kind}, but its content is not {kind}"
    ):
        list(read_rows(str(tmp_path / name)))


def test_a_file_may_have_any_name_if_it_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"prompt,chosen\np,a\n")
    assert list(read_rows(str(tmp_path / "a.parquet"))) == [(2, {"prompt": "p", "chosen": "a"})]
