"""Rows of CSV and TSV files."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.files.table import delimiter_of, read_table
from kwise.train.data.read import read_rankings
from kwise.train.data.rows.items import RowProblem
from kwise.train.rankings.errors import RankingsError

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def rows_of(path: Path, content: str | bytes) -> list[tuple[int, Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [
        (number, str(row) if isinstance(row, RowProblem) else row)
        for number, row in read_rows(str(path))
    ]


@given(
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5),
    st.sampled_from([",", "\t", ";", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_python_writes_is_read(
    rows: list[tuple[str, str]], delimiter: str, end: str, quoting: Any
) -> None:
    # Python 3.11 does not quote a text for its carriage return.
    assume(quoting == csv.QUOTE_ALL or "\r" not in "".join(map("".join, rows)))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("chosen", "rejected"), *rows])
    lines = enumerate(io.BytesIO(file.getvalue().encode()), start=1)
    found = [row for _, row in read_table(lines, delimiter, "a.csv")]
    expected = [{"chosen": a or None, "rejected": b or None} for a, b in rows]
    assert found == expected


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("prompt,chosen,rejected", ","),
        ("prompt\tchosen\trejected", "\t"),
        ('"prompt; or question";"chosen, the better";rejected', ";"),
        ("prompt", ""),
        ("a,b;c", ""),
    ],
)
def test_the_header_alone_decides_on_the_delimiter(header: str, delimiter: str) -> None:
    assert delimiter_of(header) == delimiter


def test_the_first_row_does_not_decide_on_the_delimiter(tmp_path: Path) -> None:
    content = "prompt\tchosen\trejected\none, two, three, four\tyes, a, b\tno; never\n"
    [(_, row)] = rows_of(tmp_path / "a", content)
    assert row["prompt"] == "one, two, three, four" and row["rejected"] == "no; never"


def test_a_row_has_the_number_of_its_first_line(tmp_path: Path) -> None:
    content = '\n\ufeff\nprompt,chosen\n"two\nlines",a\n\nb,"c\r\nd"\n,\n'.replace("\ufeff\n", "")
    assert rows_of(tmp_path / "a", content) == [
        (3, {"prompt": "two\nlines", "chosen": "a"}),
        (6, {"prompt": "b", "chosen": "c\r\nd"}),
        (8, {"prompt": None, "chosen": None}),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    content = gzip.compress("\ufeffprompt,chosen\na,b\n".encode())
    assert rows_of(tmp_path / "a", content) == [(2, {"prompt": "a", "chosen": "b"})]


def test_a_row_with_other_cells_is_a_problem_and_the_next_row_follows(tmp_path: Path) -> None:
    content = "prompt,chosen\na\na,b,c\na,b\n"
    assert rows_of(tmp_path / "a", content) == [
        (2, "row: has 1 cells, but the header has 2"),
        (3, "row: has 3 cells, but the header has 2"),
        (4, {"prompt": "a", "chosen": "b"}),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            'prompt,chosen\na,b\n"c,d\ne,f\n',
            "a:3: row: not CSV: a quotation mark that opens here is never closed; no row",
        ),
        ("prompt,chosen\na,b\nc\rd,e\n", "a:3: row: not CSV: a carriage return stands outside"),
        ("prompt,chosen\ra,b\r", "a:1: row: not CSV: a carriage return stands outside"),
        ('prompt,chosen\na,b\n"c"x,d\n', "a:3: row: not CSV: ',' expected after '\"'"),
        (b"prompt,chosen\na,b\n\xe4,d\n", "a:3: row: not UTF-8; save the file as UTF-8; no row"),
        ("prompt,chosen,prompt\na,b,c\n", "a:1: row: the header has the column 'prompt' twice"),
    ],
)
def test_a_table_that_cannot_be_read_on_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RankingsError) as raised:
        rows_of(Path("a"), content)
    assert str(raised.value).startswith(problem)


def test_columns_with_lists_hold_json(tmp_path: Path) -> None:
    responses = [{"text": 'say "a",\nb', "rank": 1}, {"text": "c" * 200_000, "rank": 2}]
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("prompt", "responses"), ("[P]", json.dumps(responses))])
    [ranking] = read_rankings(path)
    assert ranking.prompt[0].content == "[P]"
    assert ranking.responses == tuple(response["text"] for response in responses)
    path.write_text("prompt,responses\nP,\"[{'text': 'a', 'rank': 1}]\"\n")
    with pytest.raises(RankingsError, match=r"responses: must be JSON in a table: .* by pandas"):
        read_rankings(path)


@pytest.mark.parametrize("chosen", ['["a"]', "['a']", "['a' 'b']"])
def test_lists_of_texts_are_not_taken_for_texts(tmp_path: Path, chosen: str) -> None:
    """In JSON Lines a text and a list differ; in a table only other columns tell them apart."""
    cells = {"prompt": "P", "chosen": chosen, "rejected": '["b", "c"]'}
    path = tmp_path / "a.csv"

    def write(**more: str) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*cells, *more])
            writer.writeheader()
            writer.writerow(cells | more)

    write()
    with pytest.raises(RankingsError, match="chosen: and rejected are lists in a table"):
        read_rankings(path)
    write(num_correct="1", num_incorrect="2")
    if chosen == '["a"]':
        [ranking] = read_rankings(path)
        assert (ranking.responses, ranking.ranks) == (("a", "b", "c"), (1, 2, 2))
    else:
        with pytest.raises(RankingsError, match="chosen: must be JSON in a table"):
            read_rankings(path)


def test_the_index_of_pandas_is_a_column_of_its_own(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a", ",prompt\n0,a\n") == [(2, {"column 1": "0", "prompt": "a"})]


def test_json_lines_whose_first_line_is_bad_are_no_table(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a", 'oops, a comment\n{"prompt": "a"}\n')
    assert [number for number, _ in rows] == [1, 2] and rows[1][1] == {"prompt": "a"}
