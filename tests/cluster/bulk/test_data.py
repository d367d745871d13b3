"""What a worker of Ray Data does with a table, without Ray."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kwise.bulk.input.groups import Columns
from kwise.engine.config import EngineConfig

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")


def _scored(artifact: Path, table: Any) -> list[dict[str, Any]]:
    from kwise.cluster.data import ScoreBatch

    with closing(ScoreBatch(str(artifact), Columns(), EngineConfig(threads=1))) as score:
        rows: list[dict[str, Any]] = score(table).select(["rewards", "errors"]).to_pylist()
    return rows


def test_times_beyond_python_and_texts_that_are_not_utf8_harm_no_other_row(
    tiny_artifact: Path,
) -> None:
    offsets, content = pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xffp")
    table = pa.table(
        {
            "prompt": pa.Array.from_buffers(pa.string(), 2, [None, offsets, content]),
            "responses": [["a", "b"], ["c", "d"]],
            "time": pa.array([1_700_000_000_123_456_789] * 2, pa.timestamp("ns", "UTC")),
        }
    )
    bad, good = _scored(tiny_artifact, pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    assert bad == {"rewards": [], "errors": ["prompt: not UTF-8"]}
    assert good["errors"] == [None, None]
    assert all(isinstance(reward, float) for reward in good["rewards"])


def test_a_model_with_members_adds_columns_with_one_entry_per_response(
    members_artifact: Path,
) -> None:
    from kwise.cluster.data import ScoreBatch

    table = pa.table(
        {"prompt": ["p", "q"], "responses": [["a", "word " * 400, "b"], ["c"]]},
        pa.schema([("prompt", pa.string()), ("responses", pa.list_(pa.string()))]),
    )
    with closing(ScoreBatch(str(members_artifact), Columns(), EngineConfig(threads=1))) as score:
        first, second = score(table).to_pylist()
    assert [value is None for value in first["std"]] == [False, True, False]
    assert [value is None for value in first["members"]] == [False, True, False]
    assert len(second["members"][0]) == 3
    assert second["min"][0] == min(second["members"][0])
    assert second["rewards"][0] == pytest.approx(sum(second["members"][0]) / 3)
