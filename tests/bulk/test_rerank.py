"""`kwise rerank`: rewards, order, forms, bad rows, and inputs that break readers."""

import gzip
import json
import math
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kwise import RewardClient
from kwise.comparison import win_probability
from kwise.types import Reward
from tests.bulk.runs import groups, read_lines, rerank, write_lines
from tests.servers import Server


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", groups(30))


def messages(prompt: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def test_rewards_are_those_of_transformers_in_the_order_of_the_input(
    tmp_path: Path,
    tiny_artifact: Path,
    tiny_checkpoint: Path,
    plain_rewards: Callable[..., list[float]],
) -> None:
    given = groups(12)
    path = write_lines(tmp_path / "in.jsonl", given)
    # Small windows and batches, so that groups are divided and sorted.
    options = ["--window-tokens", "1024", "--max-batch-tokens", "64"]
    assert rerank(path, tmp_path / "out.jsonl", "--artifact", tiny_artifact, *options) == 0
    written = read_lines(tmp_path / "out.jsonl")
    assert [row["row"] for row in written] == list(range(1, 13))
    for row, scored in zip(given, written, strict=True):
        expected = plain_rewards(tiny_checkpoint, messages(row["prompt"]), row["responses"])
        assert scored["rewards"] == pytest.approx(expected, abs=1e-4)


def test_a_server_gives_the_rewards_of_the_model_in_this_process(
    tmp_path: Path, rows: Path, tiny_artifact: Path, tiny_server: Server
) -> None:
    assert rerank(rows, tmp_path / "a.jsonl", "--artifact", tiny_artifact) == 0
    assert rerank(rows, tmp_path / "b.jsonl", "--server", tiny_server.address) == 0
    for here, there in zip(
        read_lines(tmp_path / "a.jsonl"), read_lines(tmp_path / "b.jsonl"), strict=True
    ):
        assert here["row"] == there["row"]
        assert here["rewards"] == pytest.approx(there["rewards"], abs=1e-4)


def test_every_form_follows_from_the_rewards(
    tmp_path: Path, rows: Path, tiny_server: Server
) -> None:
    def written(*options: str) -> list[dict[str, Any]]:
        output = tmp_path / "out.jsonl"
        arguments = ["--server", tiny_server.address, "--overwrite", *options]
        assert rerank(rows, output, *arguments) == 0
        return read_lines(output)

    rewards = [row["rewards"] for row in written()]
    order = [sorted(range(3), key=lambda i, r=row: -r[i]) for row in rewards]  # type: ignore[misc]
    assert all(len(set(row)) == 3 for row in rewards), "the test needs rewards that differ"
    for row, ranked in zip(written("--write", "ranks"), order, strict=True):
        assert [row["ranks"][index] for index in ranked] == [1, 2, 3]
    best = written("--write", "best")
    assert [row["best"] for row in best] == [ranked[0] for ranked in order]
    assert [row["reward"] for row in best] == [max(row) for row in rewards]
    top = written("--write", "top-k", "--top-k", "2")
    assert [row["top"] for row in top] == [ranked[:2] for ranked in order]
    for row, values in zip(written("--write", "matrix"), rewards, strict=True):
        for i, line in enumerate(row["win_probabilities"]):
            expected = [win_probability(values[i] - value) for value in values]
            assert line == pytest.approx(expected, abs=1e-5)
    given = groups(30)
    pairs = written("--write", "pairs", "--keep", "id")
    assert [row["id"] for row in pairs] == [row["id"] for row in given]
    for row, values, ranked, source in zip(pairs, rewards, order, given, strict=True):
        assert list(row) == ["id", "prompt", "chosen", "rejected", "margin"]
        assert row["prompt"] == messages(source["prompt"])
        for name, index in (("chosen", ranked[0]), ("rejected", ranked[-1])):
            content = source["responses"][index]
            assert row[name] == [{"role": "assistant", "content": content}]
        assert row["margin"] == pytest.approx(max(values) - min(values), abs=1e-5)
    assert len(written("--write", "pairs", "--pairs", "all")) == 90
    assert len(written("--write", "pairs", "--pairs", "best-rest")) == 60
    margins = [row["margin"] for row in pairs]
    middle = (sorted(margins)[14] + sorted(margins)[15]) / 2
    kept = written("--write", "pairs", "--min-margin", str(middle))
    assert [row["margin"] for row in kept] == [margin for margin in margins if margin > middle]


def test_texts_are_written_on_request_only(tmp_path: Path, rows: Path, tiny_server: Server) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--server", tiny_server.address, "--overwrite"]
    for form in ("rewards", "ranks", "best", "top-k", "matrix"):
        assert rerank(rows, output, *options, "--write", form) == 0
        assert "Answer" not in output.read_text()
        assert rerank(rows, output, *options, "--write", form, "--texts") == 0
        assert "Answer" in output.read_text()
    assert rerank(rows, output, *options, "--write", "pairs", "--no-texts") == 0
    assert list(read_lines(output)[0]) == ["row", "chosen_index", "rejected_index", "margin"]


def test_a_bad_row_or_response_harms_no_other_and_is_told_with_its_place(
    tmp_path: Path, tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = groups(2)
    path = write_lines(
        tmp_path / "in.jsonl",
        [
            good[0],
            "",
            "no JSON",
            {"prompt": "p"},
            {"prompt": 3, "responses": ["a"]},
            {"prompt": "p", "responses": []},
            {"prompt": "p", "responses": ["fine", None]},
            '{"prompt": NaN, "responses": ["a"]}',
            '{"prompt": "half \\ud800", "responses": ["a"]}',
            {"prompt": "p", "system": "Be rude.", "responses": ["a"]},
            {"prompt": "p", "responses": ["short", "word " * 3000]},
            {"prompt": "p", "prompt ": "p", "responses": ["a", "a"]},
            '{"prompt": "p", "prompt": "q", "responses": ["a"]}',
            good[1],
        ],
    )
    output = tmp_path / "out.jsonl"
    assert rerank(path, output, "--artifact", tiny_artifact) == 1
    written = read_lines(output)
    assert [row["row"] for row in written] == [1, 10, 11, 13]
    assert written[1]["rewards"][1] is None and isinstance(written[1]["rewards"][0], float)
    assert written[2]["rewards"][0] == written[2]["rewards"][1], "equal responses, equal rewards"
    told = read_lines(tmp_path / "out.jsonl.bad.jsonl")
    assert [(row["row"], row["line"], row.get("field")) for row in told] == [
        (2, 3, None),
        (3, 4, "responses"),
        (4, 5, "prompt"),
        (5, 6, "responses"),
        (6, 7, "responses[1]"),
        (7, 8, "prompt"),
        (8, 9, "prompt"),
        (9, 10, "system"),
        (10, 11, "responses[1]"),
        (12, 13, None),
    ]
    assert all(row["file"] == str(path) for row in told)
    assert "tokens and the limit is 2048" in told[8]["reason"]
    assert told[8]["response"] == 1
    errors = capsys.readouterr().err
    assert "4 groups with 9 responses scored" in errors
    assert "not scored: 9 rows and 1 response of other rows" in errors


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\n\n" + text.replace(b"\n", b"\n \n"),
        gzip.compress,
        lambda text: b"[" + text.strip().replace(b"\n", b",") + b"]",
    ],
    ids=["BOM", "CRLF", "blank lines", "gzip", "array"],
)
def test_the_same_rows_in_another_dress_give_the_same_bytes(
    tmp_path: Path, rows: Path, tiny_server: Server, change: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "changed").write_bytes(change(rows.read_bytes()))
    outputs = []
    for given in (rows, tmp_path / "changed"):
        output = tmp_path / f"{given.name}.out"
        assert rerank(given, output, "--server", tiny_server.address) == 0
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]


def test_a_row_of_50_mb_is_a_bad_row(tmp_path: Path, tiny_artifact: Path) -> None:
    (good,) = groups(1)
    huge = {"prompt": "p", "responses": ["x" * (50 << 20)]}
    path = write_lines(tmp_path / "in.jsonl", [good, huge, good])
    assert rerank(path, tmp_path / "out.jsonl", "--artifact", tiny_artifact) == 1
    written = read_lines(tmp_path / "out.jsonl")
    assert [row["row"] for row in written if row["rewards"][0] is not None] == [1, 3]
    (told,) = read_lines(tmp_path / "out.jsonl.bad.jsonl")
    assert told["row"] == 2 and "characters and the limit is" in told["reason"]


def test_parquet_goes_in_and_out(tmp_path: Path, rows: Path, tiny_server: Server) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(
        [{**row, "prompt": messages(row["prompt"])} for row in groups(30)]
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet", row_group_size=7)
    assert rerank(rows, tmp_path / "a.jsonl", "--server", tiny_server.address) == 0
    options = ["--server", tiny_server.address, "--keep", "id", "--write", "ranks"]
    assert rerank(tmp_path / "in.parquet", tmp_path / "b.parquet", *options) == 0
    written = pyarrow.parquet.read_table(tmp_path / "b.parquet")
    assert {field.name: str(field.type) for field in written.schema} == {
        "row": "int64",
        "id": "string",
        "ranks": "list<element: int32>",
        "rewards": "list<element: float>",
    }
    expected = [row["rewards"] for row in read_lines(tmp_path / "a.jsonl")]
    assert written["rewards"].to_pylist() == [pytest.approx(row, abs=1e-4) for row in expected]
    assert not (tmp_path / "b.parquet.partial").exists()


def test_folders_patterns_and_saved_data_sets_are_inputs(
    tmp_path: Path, tiny_server: Server
) -> None:
    import pyarrow

    given = groups(9)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_lines(folder / "b.jsonl", given[3:6])
    write_lines(folder / "a.jsonl", given[:3])
    write_lines(folder / "b.5.jsonl", [])
    write_lines(folder / "README.md", ["not data"])
    write_lines(folder / "c.jsonl", given[6:])
    saved = tmp_path / "saved"
    saved.mkdir()
    table = pyarrow.Table.from_pylist([{**row, "prompt": messages(row["prompt"])} for row in given])
    for name, part in (("data-0.arrow", table[:4]), ("data-1.arrow", table[4:])):
        with pyarrow.ipc.new_stream(str(saved / name), table.schema) as stream:
            stream.write_table(part)
    files = [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]
    (saved / "state.json").write_text(json.dumps({"_data_files": files}))
    outputs = []
    for number, name in enumerate([str(folder), f"{folder}/*.jsonl", str(saved)]):
        output = tmp_path / f"{number}.jsonl"
        assert rerank(name, output, "--server", tiny_server.address, "--keep", "id") == 0
        outputs.append(read_lines(output))
    assert [row["id"] for row in outputs[0]] == [row["id"] for row in given]
    assert outputs[0] == outputs[1] == outputs[2]


def test_values_that_json_lacks_are_copied_as_texts(tmp_path: Path, tiny_server: Server) -> None:
    import pyarrow
    import pyarrow.parquet

    day = datetime(2026, 11, 29, 2, 30)
    row = {"prompt": "p", "responses": ["a"], "day": day, "raw": b"\xff", "much": Decimal("0.10")}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "in.parquet")
    keep = ["--keep", "day", "raw", "much"]
    output = tmp_path / "out.jsonl"
    assert rerank(tmp_path / "in.parquet", output, "--server", tiny_server.address, *keep) == 0
    (written,) = read_lines(output)
    assert [written[name] for name in keep[1:]] == ["2026-11-29T02:30:00", "/w==", "0.10"]


def test_a_column_to_keep_that_rows_lack_is_told(
    tmp_path: Path, tiny_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "in.jsonl", [*groups(3), {"prompt": "p", "responses": ["a"]}])
    options = ["--server", tiny_server.address, "--keep", "id"]
    assert rerank(path, tmp_path / "out.jsonl", *options) == 0
    assert [row["id"] for row in read_lines(tmp_path / "out.jsonl")] == ["r0", "r1", "r2", None]
    assert "--keep id: 1 rows have no such column, and null was written" in capsys.readouterr().err


def test_a_symbolic_link_stays_one(tmp_path: Path, rows: Path, tiny_server: Server) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "behind.jsonl")
    assert rerank(rows, tmp_path / "link.jsonl", "--server", tiny_server.address) == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len(read_lines(tmp_path / "behind.jsonl")) == 30


def test_columns_are_named_by_options(tmp_path: Path, tiny_server: Server) -> None:
    path = write_lines(
        tmp_path / "in.jsonl",
        [{"q": "Why?", "chosen": "Because.", "rejected": "No.", "context": "left out"}],
    )
    options = ["--server", tiny_server.address, "--prompt-column", "q"]
    options += ["--responses-column", "chosen", "rejected", "--ignore-columns", "context"]
    assert rerank(path, tmp_path / "out.jsonl", *options) == 0
    (row,) = read_lines(tmp_path / "out.jsonl")
    assert len(row["rewards"]) == 2


def test_token_ids_are_scored(tmp_path: Path, tiny_artifact: Path, tiny_server: Server) -> None:
    path = write_lines(tmp_path / "in.jsonl", [{"prompt": [5, 6, 7], "responses": [[8, 9], [10]]}])
    assert rerank(path, tmp_path / "out.jsonl", "--artifact", tiny_artifact) == 0
    (row,) = read_lines(tmp_path / "out.jsonl")
    with RewardClient(tiny_server.address) as client:
        scored = client.score([5, 6, 7], [[8, 9], [10]])
    expected = [reward.value for reward in scored.rewards if isinstance(reward, Reward)]
    assert row["rewards"] == pytest.approx(expected, abs=1e-4)
    assert all(map(math.isfinite, row["rewards"]))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["IN", "IN"], "exists; choose another name"),
        (["IN", "IN", "--overwrite"], "is a file of the input as well"),
        (["IN", "missing/out"], "there is no directory"),
        (["missing", "out"], "No such file or directory"),
        (["IN*.nothing", "out"], "the pattern matches no file"),
        (["-", "out", "--resume"], "--resume needs an input that can be read again"),
        (["IN", "-", "--resume"], "--resume needs an output that is a file"),
        (["IN", "out", "--resume", "--overwrite"], "not both"),
        (["IN", "out", "--top-k", "3"], "--top-k has an effect only with --write top-k"),
        (["IN", "out", "--model", "m"], "--model has an effect only with --server"),
        (["IN", "out", "--server", "localhost:1"], "give either --artifact or --server"),
        (["IN", "out", "--keep", "id", "id"], "--keep names 'id' twice"),
        (["IN", "out", "--keep", "id", "rewards"], "--keep names 'rewards', but the output has"),
        (["IN", "out", "--keep", "row"], "--keep names 'row', but the output has"),
        (["IN", "out", "--keep", "prompt", "--texts"], "--keep names 'prompt', but the output"),
        (["IN", "out", "--min-margin", "-1"], "--min-margin"),
    ],
)
def test_a_wrong_command_line_is_told_before_the_model_is_loaded(
    tmp_path: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("IN", rows.name) for word in arguments]
    assert rerank(words[0], words[1], *words[2:], "--artifact", "no-such-artifact") == 2
    assert problem in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [rows.name]


def test_a_full_disk_is_one_line(
    tmp_path: Path, rows: Path, tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerank(rows, "/dev/full", "--artifact", tiny_artifact) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "kwise rerank: /dev/full: No space left on device"
    )
