"""Values of JSON that Parquet has no place for end in one plain sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.bulk.output.forms import FORMS
from kwise.bulk.output.names import FormName
from kwise.bulk.output.parquet import is_optional, write_parquet
from kwise.errors import ConfigError
from tests.bulk.runs import groups, rerank, write_lines


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

    with pytest.raises(ConfigError, match="which is JSON Lines: rename it"):
        write_parquet(lines, tmp_path / "rows.parquet", {})


@pytest.mark.parametrize("texts", [False, True], ids=["indices", "texts"])
@pytest.mark.parametrize("form", FormName, ids=lambda form: form.value)
def test_a_file_without_rows_has_the_columns_of_its_form(
    tmp_path: Path, form: FormName, texts: bool
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = tmp_path / "lines.jsonl"
    lines.touch()
    columns = FORMS[form].columns(("id",), texts=texts)

    write_parquet(lines, tmp_path / "rows.parquet", columns)

    schema = parquet.read_schema(tmp_path / "rows.parquet")
    columns = {name: text for name, text in columns.items() if not is_optional(text)}
    assert schema.names == list(columns)
    types = {"float": "float", "int": "int32", "long": "int64", None: "null"}
    for name, text in columns.items():
        if not (text or "").startswith("list"):
            assert str(schema.field(name).type) == types[text]


@pytest.mark.parametrize("options", [(), ("--write", "pairs"), ("--write", "matrix", "--texts")])
def test_columns_with_and_without_rows_are_the_same(
    tmp_path: Path, tiny_artifact: Path, options: tuple[str, ...]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    names = []
    for count in (0, 2):
        given = write_lines(tmp_path / "in.jsonl", groups(count))
        output = tmp_path / f"{count}.parquet"
        assert rerank(given, output, "--artifact", tiny_artifact, "--keep", "id", *options) == 0
        names.append(parquet.read_schema(output).names)
    assert names[0] == names[1]
