"""Reading of files: equal rows from every kind of file, one at a time, and errors with a place."""

import gzip
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kwise.errors import ConfigError
from kwise.train.data.files.json_array import CHUNK_BYTES, read_array
from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.rows.items import RowProblem
from kwise.train.rankings.errors import RankingsError

ROWS: list[dict[str, Any]] = [
    {
        "prompt": "ünï ☂ \n",
        "answers": [{"text": "a", "score": 1.5}, {"text": "b", "score": -2.0}],
        "none": None,
    },
    {"prompt": "", "answers": [], "none": "x"},
    {"prompt": 'quoted "[{,\\', "answers": [{"text": "c" * 100_000, "score": 0.0}], "none": "y"},
]

ROW_TYPES = (dict, list, str, int, float, RowProblem)


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write `rows` in the kind of file that the suffix of `path` stands for."""
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
        return str(path)
    is_array = ".json" in path.suffixes
    text = (
        json.dumps(rows, indent=1, ensure_ascii=False)
        if is_array
        else "\n\n".join(json.dumps(row) for row in rows)
    )
    content = (("\ufeff" if "bom" in path.name else "") + text).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "bom.jsonl", "a.json", "a.json.gz", "bom.json", "a.parquet"]
)
def test_rows_are_the_same_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    numbers, rows = zip(*read_rows(written(tmp_path / name, ROWS)), strict=True)
    assert list(rows) == ROWS
    assert numbers == ((1, 3, 5) if "jsonl" in name else (1, 2, 3))  # in JSON Lines, the line


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_the_kind_is_recognised_by_content_and_not_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content = Path(written(tmp_path / name, ROWS)).read_bytes()
    plain = tmp_path / "data"
    plain.write_bytes(content)
    assert [row for _, row in read_rows(str(plain))] == ROWS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [row for _, row in read_rows("-")] == ROWS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@example([0.0], 1, False, None)  # a chunk that ends in "0."
@given(st.lists(JSON, max_size=5), st.integers(1, 40), st.booleans(), st.sampled_from([None, 2]))
def test_an_array_does_not_depend_on_where_chunks_end(
    values: list[Any], chunk: int, is_ascii: bool, indent: int | None
) -> None:
    content = json.dumps(values, ensure_ascii=is_ascii, indent=indent).encode(
        "utf-8", "surrogatepass"
    )
    stream = io.BytesIO(content)
    assert [row for _, row in read_array(stream, "a.json", chunk_bytes=chunk)] == values


@pytest.mark.parametrize(
    ("content", "num_rows", "problem"),
    [
        (
            '[{"a": 1}, {"a": ]',
            1,
            "a.json:2: row: not JSON: Expecting value; no row can be found after it",
        ),
        ('[{"a": 1}, {"a": 2', 1, "a.json:2: row: not JSON: "),
        ('[{"a": 1} {"a": 2}]', 1, "a.json:2: row: ',' or ']' expected"),
        ('[{"a": 1}', 1, "a.json:2: row: the array does not end"),
        ('[{"a": 1},]', 1, "a.json:2: row: not JSON: Expecting value"),
        ('[{"a": 1}]\n[{"a": 2}]', 1, "a.json:2: row: there is more after the array"),
        ('["ab', 0, "a.json:1: row: not JSON: Unterminated string; no row"),
        ("[12", 0, "a.json:1: row: the array does not end"),
        ("[" * 100_000, 0, "a.json:1: row: not readable as JSON: it is nested too deep"),
        (b'["\xff"]', 0, "a.json:1: row: not UTF-8"),
    ],
)
def test_a_damaged_array_is_reported_with_the_place_of_the_damage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | bytes,
    num_rows: int,
    problem: str,
) -> None:
    """Skipping the damage would lose rows silently."""
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_bytes(content.encode() if isinstance(content, str) else content)
    rows = read_rows("a.json")
    assert [number for number, _ in islice(rows, num_rows)] == [*range(1, num_rows + 1)]
    with pytest.raises(RankingsError) as raised:
        next(rows)
    assert str(raised.value).startswith(problem)


def read_all(rows: Iterator[tuple[int, Any]]) -> list[Any]:
    return [row for _, row in rows]


def test_a_bad_line_is_a_problem_and_the_next_line_follows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"\n\xff\n{"a": ' + b"[" * 100_000 + b'\n{"a": 2}')
    kinds = [str(row) if isinstance(row, RowProblem) else row for _, row in read_rows(str(path))]
    assert [kinds[0], kinds[4]] == [{"a": 1}, {"a": 2}]
    assert [kind.split(":")[1].split(" at")[0] for kind in kinds[1:4]] == [
        " not JSON",
        " not UTF-8",
        " not readable as JSON",
    ]


@pytest.mark.parametrize(
    "content", [b'[{"a": 1}, {"a": {"b": 1, "b": 2}}, {"a": 2}]', b'{"a": 1}\n{"a": 1, "a": 1}\n3']
)
def test_a_row_with_a_key_twice_is_a_problem_and_the_next_row_follows(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    rows = read_all(read_rows(str(path)))
    assert isinstance(rows[1], RowProblem) and "twice" in str(rows[1])
    assert [isinstance(row, RowProblem) for row in rows] == [False, True, False]


def test_a_truncated_gzip_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(RankingsError, match="not a complete gzip file"):
        read_all(read_rows(str(path)))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_an_error_while_reading_names_the_file() -> None:
    """As from a damaged disk; nobody can read this file from its beginning."""
    with pytest.raises(OSError, match="mem") as raised:
        read_all(read_rows("/proc/self/mem"))
    assert raised.value.filename == "/proc/self/mem"


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    path.write_bytes(Path(written(tmp_path / "whole.parquet", ROWS)).read_bytes()[:-10])
    with pytest.raises(RankingsError, match="not readable as Parquet"):
        read_all(read_rows(str(path)))


def test_parquet_inside_gzip_is_refused(tmp_path: Path) -> None:
    """pyarrow would report the compressed file as damaged."""
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(Path(written(tmp_path / "a.parquet", ROWS)).read_bytes()))
    with pytest.raises(RankingsError, match="is Parquet compressed with gzip; decompress it first"):
        read_all(read_rows(str(path)))


def test_parquet_on_standard_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(written(tmp_path / "a.parquet", ROWS)).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ConfigError, match="give it as a file"):
        read_all(read_rows("-"))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    """A separate process makes the import of pyarrow fail, as on a machine without it."""
    path = written(tmp_path / "a.parquet", ROWS)
    program = (
        "import sys; sys.modules['pyarrow'] = None; from kwise.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "data", "convert", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "pip install '.[data]'" in ended.stderr


class Endless(io.RawIOBase):
    """A stream that never ends and counts the bytes that were read from it."""

    def __init__(self, beginning: bytes, again: bytes) -> None:
        self._pending, self._again, self.num_read = beginning, again, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while len(self._pending) < len(buffer):
            self._pending += self._again
        buffer[:] = self._pending[: len(buffer)]
        self._pending = self._pending[len(buffer) :]
        self.num_read += len(buffer)
        return len(buffer)


@pytest.mark.parametrize(
    ("beginning", "again"),
    [(b"", b'{"a": 1}\n'), (b"[0", b', {"a": 1}'), (b" \n [0", b',{"a":\n "1"}')],
)
def test_a_row_is_yielded_before_the_next_ones_are_read(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes, again: bytes
) -> None:
    stream = Endless(beginning, again)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(stream)))
    rows = read_rows("-")
    taken = [next(rows) for _ in range(50_000)]
    assert taken[-1][0] == 50_000
    assert stream.num_read < 50_000 * len(again) + 4 * CHUNK_BYTES


@given(
    st.lists(
        st.sampled_from(
            [b'{"a": "b', b'"}', b"[", b"]", b",", b"\n", b"\xff", b'"', b"\t", b"PAR1"]
        )
        | st.binary(max_size=6),
        max_size=12,
    ).map(b"".join),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"a,b\n", b"\x1f\x8b", b"PAR1", b'{"a": 1}\n']),
)
@example(b"a,b\rc", b"")
def test_any_bytes_are_rows_or_an_error_for_people(content: bytes, beginning: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(beginning + content)
        file.flush()
        try:
            for number, row in read_rows(file.name):
                assert number >= 1 and (row is None or isinstance(row, ROW_TYPES))
        except (RankingsError, ConfigError) as error:
            assert "Traceback" not in str(error) and str(error)
