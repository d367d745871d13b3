"""Windows: the same cuts wherever reading begins, and a bound on memory whatever the rows are."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.bulk.config import RerankConfig
from kwise.bulk.input.files import input_files
from kwise.bulk.input.groups import Columns
from kwise.bulk.input.windows import cut_windows, read_input
from tests.bulk.runs import groups, write_lines


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_lines(tmp_path_factory.mktemp("windows") / "in.jsonl", groups(40)))


@given(max_tokens=st.integers(1, 300), max_rows=st.integers(1, 20))
def test_a_run_that_resumes_after_a_window_cuts_the_same_windows(
    path: str, max_tokens: int, max_rows: int
) -> None:
    rows = list(read_input(input_files(path), Columns().group))
    windows = list(cut_windows(rows, max_tokens, max_rows))
    assert [row for window in windows for row in window.rows] == rows
    done = len(windows) // 2
    skipped = sum(len(window.rows) for window in windows[:done])
    rest = read_input(input_files(path), Columns().group, skipped)
    assert list(cut_windows(rest, max_tokens, max_rows)) == windows[done:]


def test_long_texts_end_a_window(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": ["r"], "note": "x" * (6 << 20), "unused": "y" * 100}
    path = write_lines(tmp_path / "in.jsonl", [row] * 7)
    read = read_input(input_files(str(path)), Columns().group)
    assert [len(window.rows) for window in cut_windows(read, 1 << 30, 4096)] == [3, 3, 1]
    # What the output does not need is not held.
    small = read_input(input_files(str(path)), Columns().group, fields_of=lambda row: {})
    (window,) = cut_windows(small, 1 << 30, 4096)
    assert [row.fields for row in window.rows] == [{}] * 7


def test_bad_rows_fill_windows_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [{"prompt": 1}] * 10)
    read = read_input(input_files(str(path)), Columns().group)
    assert [len(window.rows) for window in cut_windows(read, 1000, 4)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({}, 64 * 2048), ({"device": "cuda"}, 64 * 8192), ({"window_tokens": 7}, 7)],
)
def test_a_window_has_64_batches(options: dict[str, Any], tokens: int) -> None:
    config = RerankConfig(input="in", output="out", artifact="a", **options)
    assert config.effective_window_tokens == tokens


def test_what_cannot_be_read_has_its_field_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('prompt,responses\n"p\nq","[""a""]"\np,[a\np,"[""a')
    _, bad, unread = read_input(input_files(str(path)), Columns().group)
    assert bad.problem is not None and unread.problem is not None
    assert (bad.line, bad.problem.field) == (4, "responses")
    assert bad.problem.problem.startswith("must be JSON in a table: not JSON: ")
    assert (unread.line, unread.problem.field) == (5, "")
    assert str(unread.problem) == (
        "not CSV: a quotation mark that opens here is never closed; "
        "nothing after it in this file was read"
    )
