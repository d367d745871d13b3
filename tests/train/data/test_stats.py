"""The figures of a file of rankings, against figures by hand or from a slower computation."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.cli import main
from kwise.train.data.stats.agreement import agreement, count_pairs


def ranking(prompt: Any, **ranks: int) -> dict[str, Any]:
    """Return a ranking of responses, given by their texts."""
    return {
        "prompt": prompt,
        "responses": [{"text": text, "rank": rank} for text, rank in ranks.items()],
    }


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["data", "stats", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_counts_ties_lengths_and_repetitions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = ranking("P", aaa=1, b=2)
    twin["responses"].append({"text": "b", "rank": 2})
    path = written(
        tmp_path / "a.jsonl",
        ranking("P", aa=1, b=2, cccc=2),  # longer wins in aa > b and loses in aa > cccc
        ranking("P", aa=1, cccc=2, b=2),  # the same ranking in another order
        twin,  # "b" occurs twice
        ranking(
            [{"role": "user", "content": "12345"}, {"role": "user", "content": "6"}], a=1, b=2
        ),  # equal lengths
        ranking("P", a=1, b=1),  # all tied
    )
    found = figures(capsys, path)
    assert (
        found["num_rankings"],
        found["num_prompts"],
        found["num_responses"],
        found["num_pairs"],
    ) == (5, 2, 13, 11)
    assert found["num_by_k"] == {"2": 2, "3": 3}
    assert found["tied_pair_share"] == 4 / 11
    assert found["num_all_tied"] == 1
    assert found["prompt_characters"] == {"median": 1, "p95": 6, "max": 6}
    assert found["response_characters"] == {"median": 1, "p95": 4, "max": 4}
    assert (found["num_repeated_rankings"], found["num_repeated_responses"]) == (1, 1)
    assert found["longer_wins_share"] == 4 / 6
    assert found["leakage"] is None


def test_prompts_in_both_splits_are_found_ignoring_case_and_spaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = written(
        tmp_path / "train.jsonl",
        ranking("Why is  the sky blue?\n", a=1, b=2),
        ranking("Why is the sky blue?", a=1, c=2),
        ranking("Another", a=1, b=2),
        ranking([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], a=1, b=2),
    )
    validation = written(
        tmp_path / "val.jsonl",
        ranking(" why is the SKY blue?", d=1, e=2),
        ranking("Whyisthe sky blue?", d=1, e=2),
        ranking([{"role": "user", "content": "another"}], d=1, e=2),  # the same prompt as messages
        ranking("x y", a=1, b=2),
    )
    leakage = figures(capsys, training, "--against", validation)["leakage"]
    assert leakage == {
        "against": validation,
        "num_prompts": 2,
        "num_rankings": 3,
        "num_rankings_against": 2,
    }
    assert figures(capsys, training, "--against", training)["leakage"]["num_rankings"] == 4


def test_annotators_of_one_prompt_are_compared_on_common_responses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path / "a.jsonl",
        ranking("P", a=1, b=2, c=3),
        ranking("P", a=1, b=3, c=2, d=4),  # 2 of 3 pairs alike; tau = 1/3
        ranking("P", b=1, e=2),  # one response in common with each: not compared
        ranking("Q", a=1, b=2, c=2),
        ranking("Q", a=1, b=2, c=3),  # 2 of 2 pairs that both order; tau-b = 2/sqrt(2 · 3)
        ranking("R", a=1, b=2),
    )
    found = figures(capsys, path)["agreement"]
    assert (found["num_prompts"], found["num_ranking_pairs"], found["num_pairs"]) == (2, 2, 5)
    assert found["agreement"] == 4 / 5
    assert found["kendall_tau_b"] == pytest.approx((1 / 3 + 2 / math.sqrt(6)) / 2)


def test_a_single_ranking_has_no_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "a.jsonl", ranking("P", a=1, b=2))
    found = figures(capsys, path)
    assert (
        found["agreement"]["agreement"],
        found["agreement"]["kendall_tau_b"],
        found["longer_wins_share"],
    ) == (
        None,
        None,
        None,
    )


RANKS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=7)


@given(RANKS)
def test_tau_b_follows_its_definition_and_is_symmetric(
    ranks: list[tuple[int, int]],
) -> None:
    first, second = ({index: pair[side] for index, pair in enumerate(ranks)} for side in (0, 1))
    found = agreement([[first, second]])
    signs = [(_sign(a[0] - b[0]), _sign(a[1] - b[1])) for a, b in combinations(ranks, 2)]
    product = sum(x * x for x, _ in signs) * sum(y * y for _, y in signs)
    expected = sum(x * y for x, y in signs) / math.sqrt(product) if product else None
    assert found.kendall_tau_b == (None if expected is None else pytest.approx(expected))
    assert found == agreement([[second, first]])
    if found.kendall_tau_b is not None:
        assert agreement([[first, first]]).kendall_tau_b == pytest.approx(1)


@given(RANKS)
def test_tau_b_equals_that_of_scipy(ranks: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = zip(*ranks, strict=True)
    tau = count_pairs(first, second).kendall_tau_b()
    expected = stats.kendalltau(first, second).statistic
    assert math.isnan(expected) if tau is None else tau == pytest.approx(expected)


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)


def test_the_table_has_the_figures_of_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path / "a.jsonl",
        ranking("P", aa=1, b=2, c=2),
        ranking("P", aa=1, b=2),
        ranking("Q", a=1, b=1),
    )
    assert main(["data", "stats", path, "--against", path]) == 0
    table = dict(row.strip().split("  ", 1) for row in capsys.readouterr().out.splitlines()[1:])
    table = {name: value.strip() for name, value in table.items()}
    assert table == {
        "rankings": "3",
        "distinct prompts": "2",
        "responses": "7",
        "pairs": "5",
        "rankings by K": "2: 2, 3: 1",
        "pairs tied": "40.0%",
        "rankings all tied": "1",
        "prompt, characters": "median 1, p95 1, max 1",
        "response, characters": "median 1, p95 2, max 2",
        "repeated rankings": "0",
        "repeated responses": "0 (same text as another of the ranking)",
        "longer one wins": "100.0% of pairs of different length",
        "annotators agree": "100.0% of 1 pairs that two rankings order",
        "Kendall's tau-b": "1.000, mean over 1 pairs of rankings of 1 prompts",
        "prompts in both": f"2 (3 rankings here, 3 in {path})",
    }
