"""The reader of rankings: line numbers, the limit on reported problems, and gzip."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.read import read_rankings
from tests.real_data import EXAMPLES

GOOD = {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}


def written(path: Path, *lines: Any) -> Path:
    content = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    path.write_text(content, encoding="utf-8")
    return path


def test_a_bad_line_is_named_with_its_file_and_number(tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", GOOD, "", {**GOOD, "promt": 1})
    with pytest.raises(RankingsError) as raised:
        read_rankings(path)
    assert str(raised.value).startswith(f"{path}:3: ranking: unknown key 'promt'")


@pytest.mark.parametrize(
    ("num_bad", "num_reported"),
    [(MAX_PROBLEMS, MAX_PROBLEMS), (MAX_PROBLEMS + 1, MAX_PROBLEMS + 1)],
)
def test_bad_lines_are_reported_together_up_to_a_limit(
    tmp_path: Path, num_bad: int, num_reported: int
) -> None:
    with pytest.raises(RankingsError) as raised:
        read_rankings(written(tmp_path / "data.jsonl", *["{"] * num_bad, GOOD))
    assert len(raised.value.problems) == num_reported
    assert ("there are more" in raised.value.problems[-1]) == (num_bad > MAX_PROBLEMS)


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
    path.write_bytes(gzip.compress(b"{\n" + b"\n" * 100_000)[:-9])
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
    rankings = read_rankings(EXAMPLES)
    assert len(rankings) == 96
    assert {len(ranking.responses) for ranking in rankings} == {4, 5, 6, 7, 8, 9}
