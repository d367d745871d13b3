"""Values of Parquet that Python's own types cannot hold."""

from pathlib import Path
from typing import Any

import pytest

from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.rows.items import RowProblem

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
_NS = 1_700_000_000_123_456_789
_TEXT = "2023-11-14T22:13:20.123456789Z"


def _read(path: Path, column: Any) -> list[Any]:
    pq.write_table(pa.table({"a": [1] * len(column), "t": column}), path)
    return [row if isinstance(row, RowProblem) else row["t"] for _, row in read_rows(str(path))]


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (_NS, pa.timestamp("ns", "UTC"), _TEXT),
        (2**62, pa.timestamp("us", "UTC"), "17036-07-06T14:00:27.387904Z"),
        (2**62, pa.timestamp("us"), 2**62),
        (5, pa.time64("ns"), "00:00:00.000000005"),
        (5, pa.duration("ns"), 5),
        (2**30, pa.date32(), 2**30),
    ],
)
def test_a_time_beyond_python_is_a_text_or_a_number(
    tmp_path: Path, value: int, kind: Any, expected: Any
) -> None:
    assert _read(tmp_path / "a.parquet", pa.array([value, None], kind)) == [expected, None]


def test_a_time_in_a_list_or_a_struct_is_read(tmp_path: Path) -> None:
    kind = pa.timestamp("ns", "UTC")
    lists = pa.array([[_NS, None], None], pa.list_(kind))
    assert _read(tmp_path / "a.parquet", lists) == [[_TEXT, None], None]
    struct = pa.array([{"x": _NS, "y": "z"}], pa.struct({"x": kind, "y": pa.string()}))
    assert _read(tmp_path / "b.parquet", struct) == [{"x": _TEXT, "y": "z"}]
    entries = pa.array([[("k", _NS)]], pa.map_(pa.string(), kind))
    assert _read(tmp_path / "c.parquet", entries) == [[("k", _TEXT)]]


def test_a_text_that_is_not_utf8_harms_its_row_alone(tmp_path: Path) -> None:
    offsets, data = pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xffb")
    bad, good = _read(
        tmp_path / "a.parquet", pa.Array.from_buffers(pa.string(), 2, [None, offsets, data])
    )
    assert str(bad) == "t: not UTF-8"
    assert good == "b"
