"""The commands write the standard deviation, minimum and values of members beside rewards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kwise.bulk.output.digits import float32_digits
from kwise.cli import main
from kwise.client import RewardClient
from kwise.types import Reward
from tests.bulk.runs import groups, read_lines, rerank, write_lines
from tests.servers import Server, running_server

ROWS = groups(3)


@pytest.fixture(scope="module")
def server(members_artifact: Path) -> Iterator[Server]:
    with running_server(members_artifact) as server:
        yield server


def _expected(server: Server) -> list[list[Reward]]:
    with RewardClient(server.address) as client:
        scored = [client.score(row["prompt"], row["responses"]).rewards for row in ROWS]
    return [[reward for reward in rewards if isinstance(reward, Reward)] for rewards in scored]


def test_each_form_with_rewards_has_the_columns_of_members(
    members_artifact: Path, server: Server, tmp_path: Path
) -> None:
    given = write_lines(tmp_path / "groups.jsonl", ROWS)
    expected = _expected(server)
    outputs: dict[str, list[dict[str, Any]]] = {}
    for form in ("rewards", "ranks", "best", "top-k"):
        output = tmp_path / f"{form}.jsonl"
        options = ("--artifact", members_artifact, "--write", form, "--keep", "id")
        limit = ("--top-k", "2") if form == "top-k" else ()
        assert rerank(given, output, *options, *limit) == 0
        outputs[form] = read_lines(output)
    for number, rewards in enumerate(expected):
        row = outputs["rewards"][number]
        for name in ("std", "min", "members"):
            numbers = [getattr(reward, name) for reward in rewards]
            np.testing.assert_allclose(row[name], numbers, atol=1e-4)
            assert outputs["ranks"][number][name] == row[name]
            best, *_ = top = outputs["top-k"][number]["top"]
            assert outputs["best"][number]["best"] == best
            assert outputs["best"][number][name] == row[name][best]
            assert outputs["top-k"][number][name] == [row[name][index] for index in top]
        assert row["min"] == [min(members) for members in row["members"]]


def test_parquet_has_the_members_as_lists_of_float32(
    members_artifact: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    given = write_lines(tmp_path / "groups.jsonl", ROWS)
    output = tmp_path / "rewards.parquet"
    assert rerank(given, output, "--artifact", members_artifact) == 0
    schema = parquet.read_schema(output)
    assert schema.names == ["row", "rewards", "std", "min", "members"]
    assert str(schema.field("std").type.value_type) == "float"
    assert str(schema.field("members").type.value_type.value_type) == "float"


def test_a_kept_column_may_not_have_the_name_of_one_of_them(
    members_artifact: Path,
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another model has no such column, so its output may have a copied one of that name."""
    given = write_lines(tmp_path / "groups.jsonl", [{**ROWS[0], "std": "kept"}])
    options = ("--keep", "std")
    output = tmp_path / "rewards.jsonl"
    assert rerank(given, output, "--artifact", tiny_artifact, *options) == 0
    assert read_lines(output)[0]["std"] == "kept"
    refused = tmp_path / "refused.jsonl"
    assert rerank(given, refused, "--artifact", members_artifact, *options) == 2
    assert "--keep names 'std', but the output has a column of that name" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score", "rank", "compare"])
def test_the_commands_write_members_with_the_digits_of_float32(
    command: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_lines(tmp_path / "groups.jsonl", ROWS[:1])
    assert main([command, str(given), "--server", server.address]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    for written, reward in zip(line["rewards"], _expected(server)[0], strict=True):
        assert written["members"] == [float32_digits(member) for member in reward.members]
        assert (written["std"], written["min"]) == (
            float32_digits(reward.std or 0),
            float32_digits(reward.min or 0),
        )


def test_a_model_without_members_has_none_of_these_fields(
    tiny_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_lines(tmp_path / "groups.jsonl", ROWS[:1])
    assert main(["score", str(given), "--server", tiny_server.address]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(line["rewards"][0]) == [
        "value",
        "raw",
        "tokens",
        "dropped_tokens",
        "control_tokens",
        "cached",
    ]
