"""The data schema: what is read, what is refused and where, and how prompts are split."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.cli import main
from kwise.train.rankings import (
    MAX_PROBLEMS,
    Ranking,
    RankingsError,
    read_rankings,
    split_by_prompt,
)
from kwise.types import Message

GOOD = {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}
SHARED = Path("/work/shared/data/rankings_k9.jsonl.gz")


def written(path: Path, *lines: Any) -> Path:
    path.write_text(
        "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines),
        encoding="utf-8",
    )
    return path


def responses(*items: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "p", "responses": list(items)}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line: not JSON"),
        ({"responses": GOOD["responses"]}, "ranking: has no 'prompt'"),
        (responses({"text": "a", "rank": 1}), "responses: has 1; a ranking needs at least 2"),
        (
            responses({"text": "a", "rank": 1}, {"text": "b", "rank": 1}),
            "responses: all 2 are tied",
        ),
        (
            responses({"text": "a", "rank": 1}, {"text": "b", "score": 1}),
            "responses[1]: ranks and scores are mixed",
        ),
        (
            responses({"text": "a", "rank": 1, "score": 2}, {"text": "b", "rank": 2}),
            "responses[0]: must have a rank or a score",
        ),
        (
            responses({"text": "a"}, {"text": "b", "rank": 2}),
            "responses[0]: must have a rank or a score",
        ),
        (
            responses({"text": "a", "rank": 0}, {"text": "b", "rank": 2}),
            "responses[0].rank: must be a whole number",
        ),
        (
            responses({"text": "a", "rank": True}, {"text": "b", "rank": 2}),
            "responses[0].rank: must be a whole number",
        ),
        (
            responses({"text": 3, "rank": 1}, {"text": "b", "rank": 2}),
            "responses[0].text: must be a text",
        ),
        (
            responses({"text": "\ud800", "rank": 1}, {"text": "b", "rank": 2}),
            "responses[0].text: has half of a surrogate",
        ),
        (
            {**GOOD, "prompt": [{"role": "assistant", "content": "x"}]},
            "prompt[0].role: the last message must not be the assistant",
        ),
        (
            responses({"text": "a", "rank": 1}, {"text": "b", "rank": 2}, {"text": "a", "rank": 2}),
            "responses: [0] and [2] are the same text with different ranks",
        ),
        (
            responses({"text": "a", "score": 1}, {"text": "a", "score": 2}),
            "responses: [0] and [1] are the same text",
        ),
        (
            responses({"text": "a", "score": 1}, {"text": "b", "score": math.nan}),
            "responses[1].score: must be finite",
        ),
        (
            responses({"text": "a", "score": 10**400}, {"text": "b", "score": 1}),
            "responses[0].score: must be finite",
        ),
        (
            responses({"text": "a", "score": 1}, {"text": "b", "score": -1e39}),
            "responses[1].score: must be finite in float32",
        ),
        ({**GOOD, "prompt": [{"role": "user"}]}, "prompt[0]: has no 'content'"),
        ({**GOOD, "promt": 1}, "ranking: unknown key 'promt'"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_field(
    tmp_path: Path, line: Any, problem: str
) -> None:
    path = written(tmp_path / "data.jsonl", GOOD, line)
    with pytest.raises(RankingsError) as raised:
        read_rankings(path)
    assert str(raised.value).startswith(f"{path}:2: {problem}")


@pytest.mark.parametrize(
    ("num_bad", "num_told"), [(MAX_PROBLEMS, MAX_PROBLEMS), (MAX_PROBLEMS + 1, MAX_PROBLEMS + 1)]
)
def test_all_bad_lines_are_told_at_once_up_to_a_limit(
    tmp_path: Path, num_bad: int, num_told: int
) -> None:
    """ "stopped after 20 problems" was said where there were 20 in all."""
    with pytest.raises(RankingsError) as raised:
        read_rankings(written(tmp_path / "data.jsonl", *["{"] * num_bad, GOOD))
    assert len(raised.value.problems) == num_told
    assert ("there are more" in raised.value.problems[-1]) == (num_bad > MAX_PROBLEMS)


@pytest.mark.parametrize(
    ("name", "is_packed"), [("data", True), ("data.gz", False), ("data.gz", True)]
)
def test_the_content_tells_a_gzip_file_and_the_name_does_not(
    tmp_path: Path, name: str, is_packed: bool
) -> None:
    content = json.dumps(GOOD).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if is_packed else content)
    assert len(read_rankings(tmp_path / name)) == 1
    assert main(["data", "validate", str(tmp_path / name)]) == 0


def test_a_gzip_file_that_is_cut_short_is_told_after_its_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(gzip.compress(b"{\n" + b"\n" * 100_000)[:-9])
    with pytest.raises(RankingsError) as raised:
        read_rankings(path)
    assert [
        ("not JSON" in problem, "not a complete gzip" in problem)
        for problem in raised.value.problems
    ] == [
        (True, False),
        (False, True),
    ]


def test_scores_become_ranks_with_the_highest_first_and_ties_kept(tmp_path: Path) -> None:
    items = [{"text": t, "score": s} for t, s in (("a", 0.5), ("b", 2), ("c", 0.5), ("d", -1))]
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(responses(*items)).encode()))
    [ranking] = read_rankings(path)
    assert ranking.ranks == (2, 1, 2, 3)


def test_one_text_twice_with_equal_ranks_is_a_tie(tmp_path: Path) -> None:
    items = [{"text": text, "rank": rank} for text, rank in (("a", 1), ("b", 2), ("b", 2))]
    [ranking] = read_rankings(written(tmp_path / "data.jsonl", responses(*items)))
    assert ranking.ranks == (1, 2, 2) and ranking.num_pairs() == 2


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_a_prompt_may_end_with_any_turn_but_the_assistants(tmp_path: Path, role: str) -> None:
    """Only the user's was taken, where the engine scores what the template renders."""
    prompt = [{"role": "user", "content": "2 + 2?"}, {"role": role, "content": "4"}]
    [ranking] = read_rankings(written(tmp_path / "data.jsonl", {**GOOD, "prompt": prompt}))
    assert ranking.prompt[-1].role == role


@pytest.mark.skipif(not SHARED.exists(), reason="a file of the authors' machines")
def test_nine_responses_a_prompt_with_scores_are_read() -> None:
    assert {len(ranking.responses) for ranking in read_rankings(SHARED)} == {9}


PROMPTS = st.lists(st.text(alphabet="abc", max_size=2), min_size=2, max_size=30).filter(
    lambda p: len(set(p)) > 1
)


@given(PROMPTS, st.floats(0.01, 0.9), st.integers(0, 100), st.randoms(use_true_random=False))
def test_a_prompt_is_on_one_side_of_the_split_whatever_the_order(
    prompts: list[str], fraction: float, seed: int, random: Any
) -> None:
    rankings = [
        Ranking(prompt=(Message(role="user", content=p),), responses=("x", str(i)), ranks=(1, 2))
        for i, p in enumerate(prompts)
    ]
    training, validation = split_by_prompt(rankings, fraction, seed)
    held_out = {ranking.prompt for ranking in validation}
    assert training and validation and len(training) + len(validation) == len(rankings)
    assert held_out.isdisjoint(ranking.prompt for ranking in training)
    random.shuffle(rankings)
    assert {ranking.prompt for ranking in split_by_prompt(rankings, fraction, seed)[1]} == held_out
