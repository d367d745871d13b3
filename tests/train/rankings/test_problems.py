"""The list of problems that all readers share: few lines, and a count for every reason."""

import pytest

from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.problems import MAX_REASONS, Problems


def collected(*reasons: str) -> Problems:
    problems = Problems()
    for row, reason in enumerate(reasons, start=1):
        problems.add(f"a.jsonl:{row}: {reason}", origin=f"a.jsonl:{row}")
    return problems


def test_problems_that_differ_in_numbers_are_one_reason() -> None:
    problems = collected("x[1]: has 2", "y", "x[10]: has 3.5")
    assert problems.lines("a.jsonl", 9)[3:] == [
        "a.jsonl: 3 of 9 rows cannot be used:",
        "  2 x x[…]: has … (first a.jsonl:1)",
        "  1 x y (first a.jsonl:2)",
    ]


@pytest.mark.parametrize("num_reasons", [MAX_REASONS, MAX_REASONS + 1, 5000])
def test_any_number_of_reasons_gives_few_lines_with_the_right_counts(num_reasons: int) -> None:
    letters = [f"{'a' * (i // 100)}-{'b' * (i % 100)}" for i in range(num_reasons)]
    problems = collected("often", "often", *letters)
    lines = problems.lines("a.jsonl", 10_000)
    assert len(problems) == num_reasons + 2
    assert len(lines) <= MAX_PROBLEMS + MAX_REASONS + 2
    counts = [int(line.split(" x ")[0]) for line in lines if line.startswith("  ")]
    assert counts[0] == 2 and sum(counts) == num_reasons + 2


def test_one_problem_has_a_count_but_its_reason_is_not_repeated() -> None:
    assert collected("x").lines("a.jsonl", 9) == [
        "a.jsonl:1: x",
        "a.jsonl: 1 of 9 rows cannot be used",
    ]
    assert collected("x").lines("a.jsonl", 1) == ["a.jsonl:1: x"]


def test_the_reason_why_reading_ended_is_always_told() -> None:
    problems = collected(*["x"] * 30)
    problems.add_end(RankingsError(["a.jsonl: not a complete gzip file"]))
    assert problems.ended and "a.jsonl: not a complete gzip file" in problems.lines("a.jsonl", 40)
    assert not Problems() and not Problems().lines("a.jsonl", 0)
