"""`kwise eval` on a benchmark, from end to end: the scores follow from the rewards of the model."""

from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.evaluation.report.json import read_json
from kwise.evaluation.result import Evaluation
from tests.benchmark_rows import (
    judge_bench_row,
    reward_bench_2_row,
    reward_bench_row,
    rm_bench_row,
    ties_rows,
    write_rows,
)
from tests.real_data import ROOT


def evaluated(model: Path, data: Path, *options: str, code: int = 0) -> Evaluation:
    result = data.parent / "result.json"
    words = ["eval", str(model), str(data), "--json", str(result), "--resamples", "100"]
    assert main([*words, *options]) == code
    return read_json(result)


def scores_of(evaluation: Evaluation) -> dict[str, float | None]:
    assert evaluation.suite is not None
    return {
        score.name: None if score.estimate is None else score.estimate.value
        for score in evaluation.suite.scores
    }


def test_a_benchmark_is_recognised_scored_and_reported(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    rows = [rm_bench_row(domain, number) for domain in ("chat", "math") for number in range(3)]
    data = write_rows(tmp_path / "benchmark" / "total_dataset.json", rows)
    write_rows(data.parent / "chat_filtered.json", rows[:3])
    html = tmp_path / "result.html"
    evaluation = evaluated(tiny_checkpoint, data.parent, "--html", str(html))
    for domain in ("chat", "math"):
        shares = [
            float(right > wrong)
            for row, ranking in zip(rows, evaluation.rankings, strict=True)
            if row["domain"] == domain
            for right in ranking.rewards[:3]
            for wrong in ranking.rewards[3:]
        ]
        expected = sum(shares) / len(shares)
        assert scores_of(evaluation)[domain.title()] == pytest.approx(expected)
    assert scores_of(evaluation)["Overall"] is scores_of(evaluation)["Code"] is None
    output, messages = capsys.readouterr()
    assert "RM-Bench, 6 rows" in messages
    assert "not read, because no score needs them: chat_filtered.json" in messages
    assert "5 of 5 subsets do not have exactly the published rows: chat (3 of 129 rows)" in output
    (line,) = [line.split() for line in output.splitlines() if line.startswith("Chat ")]
    assert line[1] == f"{scores_of(evaluation)['Chat']:.1%}"
    assert "<h2>RM-Bench</h2>" in html.read_text(encoding="utf-8")


def test_pairs_and_ties_are_scored_by_the_rules_of_their_benchmark(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rows = [reward_bench_2_row("Focus", 0), reward_bench_2_row("Focus", 1), *ties_rows(0)]
    evaluation = evaluated(tiny_checkpoint, write_rows(tmp_path / "a.parquet", rows))
    first, second, reference, tied = [ranking.rewards for ranking in evaluation.rankings]
    scores = scores_of(evaluation)
    assert scores["Focus"] == sum(max(r) == r[0] for r in (first, second)) / 2
    assert scores["Ties: reference accuracy"] == float(reference[0] > max(reference[1:]))
    assert scores["Ties: tied accuracy"] == float(min(tied[:3]) > max(tied[3:]))


def test_rewards_of_a_pair_go_to_the_right_response(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [judge_bench_row("livecodebench", number, label="B>A") for number in range(4)]
    swapped = [
        row | {"response_A": row["response_B"], "response_B": row["response_A"], "label": "A>B"}
        for row in rows
    ]
    results = [
        evaluated(tiny_checkpoint, write_rows(tmp_path / str(i) / "a.jsonl", part))
        for i, part in enumerate((rows, swapped))
    ]
    assert [r.rewards for r in results[0].rankings] == [r.rewards for r in results[1].rankings]
    assert scores_of(results[0]) == scores_of(results[1])


def test_rows_that_are_not_scored_are_missing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [reward_bench_row("donotanswer", number) for number in range(5)]
    rows[1]["chosen"] = "word " * 400
    data = write_rows(tmp_path / "a.jsonl", rows)
    options = ("--max-tokens", "200", "--overlong", "skip", "--limit", "4")
    suite = evaluated(tiny_checkpoint, data, *options).suite
    assert suite is not None
    (size,) = [size for size in suite.subsets if size.name == "donotanswer"]
    assert (size.num_scored, size.num_read, size.num_published) == (3, 4, 136)


def test_other_data_has_no_suite_and_a_named_benchmark_is_not_guessed(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    row = judge_bench_row("livecodebench", 0)
    data = write_rows(tmp_path / "a.jsonl", [row])
    words = ["eval", str(tiny_checkpoint), str(data), "--suite", "rm-bench"]
    assert main(words) == 1
    assert "a.jsonl:1: row: has no 'chosen'" in capsys.readouterr().err
    lines = (ROOT / "examples" / "rankings.jsonl").read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join(lines[:3]), encoding="utf-8")
    assert evaluated(tiny_checkpoint, data).suite is None
