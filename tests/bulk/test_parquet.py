"""Values of JSON that Parquet has no place for end in one plain sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.bulk.output.parquet import write_parquet
from kwise.errors import ConfigError


@pytest.mark.parametrize(
    "row",
    [
        {"meta": {}},
        {"meta": [{"inner": {}}]},
        {"\ud800": 1},
        {"meta": {"\ud800": 1}},
    ],
    ids=["empty object", "empty object in a list", "surrogate in a name", "in a nested name"],
)
def test_what_parquet_cannot_hold_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow")
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps(row) + "\n", encoding="utf-8")

    with pytest.raises(ConfigError, match="the lines are complete, and another --output name"):
        write_parquet(lines, tmp_path / "rows.parquet", {})
