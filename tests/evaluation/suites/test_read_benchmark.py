"""The files of benchmarks: each is recognised, read in full, and refused with a place if bad."""

import os
from pathlib import Path
from typing import Any

import pytest

from kwise.errors import ConfigError
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.read import BenchmarkRows, read_benchmark
from kwise.train.rankings.errors import RankingsError
from kwise.types import Message
from tests.benchmark_rows import (
    JsonRow,
    judge_bench_row,
    prior_set_row,
    reward_bench_2_row,
    reward_bench_row,
    rm_bench_row,
    ties_rows,
    write_rows,
)

ROWS: dict[SuiteName, list[JsonRow]] = {
    SuiteName.REWARD_BENCH: [reward_bench_row("alpacaeval-easy", 0), reward_bench_row("hep-go", 1)],
    SuiteName.REWARD_BENCH_2: [
        reward_bench_2_row("Focus", 0),
        reward_bench_2_row("Precise IF", 1),
        *ties_rows(0),
    ],
    SuiteName.RM_BENCH: [rm_bench_row("chat", 0), rm_bench_row("safety-refuse", 1)],
    SuiteName.JUDGE_BENCH: [
        judge_bench_row("mmlu-pro-law", 0),
        judge_bench_row("livecodebench", 1, label="B>A"),
    ],
}


def rows_of(path: Path, name: SuiteName | None = None) -> BenchmarkRows:
    rows = read_benchmark(str(path), name)
    assert rows is not None
    return rows


@pytest.mark.parametrize("file", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("name", SuiteName)
def test_a_file_is_recognised_by_its_columns(tmp_path: Path, name: SuiteName, file: str) -> None:
    path = write_rows(tmp_path / file, ROWS[name])
    recognised, named = rows_of(path), rows_of(path, name)
    assert recognised.benchmark.name is name
    assert recognised == named
    assert [origin for origin, _ in recognised.items] == [
        f"{file}:{number}" for number in range(1, len(ROWS[name]) + 1)
    ]


def test_right_responses_come_first(tmp_path: Path) -> None:
    items = {
        name: [item for _, item in rows_of(write_rows(tmp_path / "a.jsonl", rows)).items]
        for name, rows in ROWS.items()
    }
    pair, _ = items[SuiteName.REWARD_BENCH]
    assert pair.prompt == (Message(role="user", content="Question 0 of alpacaeval-easy?"),)
    assert pair.responses == ("A right answer to 0.", "A wrong answer to 0, which is longer.")
    _, _, reference, tied = items[SuiteName.REWARD_BENCH_2]
    assert (reference.num_right, reference.unit, reference.role) == (1, "0", "ref")
    assert (tied.num_right, tied.unit, tied.role) == (3, "0", "tied")
    assert [text[:5] for text in tied.responses] == ["Right"] * 3 + ["Wrong"] * 3
    _, refused = items[SuiteName.RM_BENCH]
    assert (refused.subset, refused.num_right) == ("safety-refuse", 3)
    first, second = items[SuiteName.JUDGE_BENCH]
    assert first.responses == ("Response A to 0.", "Response B to 0.")
    assert second.responses == ("Response B to 1.", "Response A to 1.")
    assert (first.subset, second.subset) == (
        "gpt-4o-2024-05-13: Knowledge",
        "gpt-4o-2024-05-13: Coding",
    )


def test_the_hub_directory_of_reward_bench_is_read_without_the_split_raw(tmp_path: Path) -> None:
    filtered = [reward_bench_row("donotanswer", 0)]
    write_rows(tmp_path / "data" / "filtered-00000-of-00001.parquet", filtered)
    write_rows(tmp_path / "data" / "raw-00000-of-00001.parquet", filtered * 3)
    write_rows(tmp_path / "dataset_infos.json", [])
    write_rows(tmp_path / ".cache" / "filtered.parquet", filtered)
    rows = rows_of(tmp_path)
    assert [origin for origin, _ in rows.items] == ["data/filtered-00000-of-00001.parquet:1"]
    assert rows.unread_files == ("data/raw-00000-of-00001.parquet",)


def test_prior_sets_are_named_by_their_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "core" / "filtered-0.parquet", [reward_bench_row("hep-js", 0)])
    for name in ("anthropic_hhh", "summarize", "summarize_prompted", "mtbench_human"):
        write_rows(tmp_path / "prior" / f"{name}-00000-of-00001.parquet", [prior_set_row(1)])
    rows = rows_of(tmp_path)
    assert [item.subset for _, item in rows.items] == ["hep-js", "anthropic_hhh", "summarize"]
    assert [message.role for message in rows.items[1][1].prompt] == ["user", "assistant", "user"]
    assert len(rows.unread_files) == 2


def test_a_directory_of_save_to_disk_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "filtered" / "data-0.arrow", [reward_bench_row("hep-js", 0)])
    write_rows(tmp_path / "raw" / "data-0.arrow", [reward_bench_row("hep-js", 0)] * 2)
    for name in ("dataset_dict.json", "filtered/state.json", "filtered/dataset_info.json"):
        (tmp_path / name).write_text("{}")
    assert len(rows_of(tmp_path).items) == 1


def test_rm_bench_takes_the_domain_from_the_file_where_no_column_has_it(tmp_path: Path) -> None:
    for domain in ("chat", "safety-response"):
        row = rm_bench_row(domain, 0)
        del row["domain"]
        write_rows(tmp_path / f"{domain}_filtered.json", [row])
    rows = rows_of(tmp_path, SuiteName.RM_BENCH)
    assert [item.subset for _, item in rows.items] == ["chat", "safety-response"]
    write_rows(tmp_path / "total_dataset.json", [rm_bench_row("math", 0)])
    rows = rows_of(tmp_path)
    assert [item.subset for _, item in rows.items] == ["math"]
    assert rows.unread_files == ("chat_filtered.json", "safety-response_filtered.json")


def test_both_splits_of_judge_bench_are_read(tmp_path: Path) -> None:
    for split, model in (("claude", "claude-3-5-sonnet-20240620"), ("gpt", "gpt-4o-2024-05-13")):
        row = judge_bench_row("livebench-math", 0, model=model)
        write_rows(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [row])
    assert [item.subset for _, item in rows_of(tmp_path).items] == [
        "claude-3-5-sonnet-20240620: Math",
        "gpt-4o-2024-05-13: Math",
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c", "subset": "hep-go"},
        {"prompt": "a", "chosen": ["b"], "rejected": ["c"]},
        {"prompt": "a", "responses": [{"text": "b", "rank": 1}, {"text": "c", "rank": 2}]},
    ],
)
def test_other_preference_data_is_not_taken_for_a_benchmark(tmp_path: Path, row: JsonRow) -> None:
    assert read_benchmark(str(write_rows(tmp_path / "a.jsonl", [row]))) is None


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (SuiteName.REWARD_BENCH, {"subset": "hep-cobol"}, "subset: is 'hep-cobol'; the benchmark"),
        (SuiteName.REWARD_BENCH, {"chosen": None}, "row: has no 'chosen'"),
        (SuiteName.REWARD_BENCH, {"prompt": 3}, "prompt: must be a list"),
        (SuiteName.REWARD_BENCH_2, {"chosen": ["a", "b"]}, "chosen: must have one response, not 2"),
        (SuiteName.REWARD_BENCH_2, {"rejected": []}, "rejected: must not be empty"),
        (SuiteName.REWARD_BENCH_2, {"subset": "Ties"}, "id: must be ref:NUMBER or tied:NUMBER"),
        (SuiteName.RM_BENCH, {"rejected": ["a", "b"]}, "rejected: must have 3 responses, not 2"),
        (SuiteName.RM_BENCH, {"domain": "law"}, "domain: is 'law'; the benchmark has chat, code"),
        (SuiteName.JUDGE_BENCH, {"label": "A=B"}, "label: is 'A=B'; it must be A>B or B>A"),
        (SuiteName.JUDGE_BENCH, {"source": "arc"}, "source: is 'arc'; it must begin with one of"),
        (SuiteName.JUDGE_BENCH, {"response_model": "me"}, "response_model: is 'me'; JudgeBench"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path, name: SuiteName, change: dict[str, Any], problem: str
) -> None:
    rows = [ROWS[name][0], ROWS[name][0] | change]
    with pytest.raises(RankingsError) as error:
        read_benchmark(str(write_rows(tmp_path / "a.jsonl", rows)), name)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(f"a.jsonl:2: {problem}")


def test_a_row_of_ties_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*ties_rows(4), *ties_rows(4)])
    with pytest.raises(RankingsError, match=r"a\.jsonl:3: id: ref:4 occurs twice"):
        read_benchmark(str(path))


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}] * 50
    with pytest.raises(RankingsError, match="and 30 more problems"):
        read_benchmark(str(write_rows(tmp_path / "a.jsonl", rows)), SuiteName.REWARD_BENCH)


def test_files_of_two_benchmarks_are_refused(tmp_path: Path) -> None:
    for name in (SuiteName.RM_BENCH, SuiteName.JUDGE_BENCH):
        write_rows(tmp_path / f"{name.value}.jsonl", ROWS[name])
    with pytest.raises(ConfigError, match="of JudgeBench and RM-Bench; evaluate one"):
        read_benchmark(str(tmp_path))


def test_a_pipe_is_not_read_to_recognise_it(tmp_path: Path) -> None:
    """Its rows would be missing afterwards. Without a writer, opening it would block."""
    os.mkfifo(tmp_path / "pipe")
    assert read_benchmark(str(tmp_path / "pipe")) is None
    assert read_benchmark("-") is None


def test_a_directory_without_a_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no file of the kinds \.json"):
        read_benchmark(str(tmp_path))
    write_rows(tmp_path / "a.jsonl", [{"prompt": "a"}])
    with pytest.raises(ConfigError, match="name the benchmark with --suite: reward-bench"):
        read_benchmark(str(tmp_path))
    with pytest.raises(ConfigError, match="No such file"):
        read_benchmark(str(tmp_path / "b.jsonl"))
