"""The example files: what the demo's model is tested on is not in what it learns from."""

import json
import re
from collections import Counter
from itertools import combinations

import pytest

from examples import demo
from kwise.train.data.read import read_rankings
from kwise.train.rankings.leaks import check_no_leaks
from kwise.train.rankings.schema import Ranking
from kwise.types import Conversation
from tests.real_data import EXAMPLES, ROOT

SANITY = ROOT / "examples" / "sanity.jsonl"
SHOWN = "README and documentation"


@pytest.fixture(scope="module")
def training() -> list[Ranking]:
    return read_rankings(EXAMPLES)


@pytest.fixture(scope="module")
def sanity() -> list[Ranking]:
    return read_rankings(SANITY)


def kinds() -> list[str]:
    lines = SANITY.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["metadata"]["kind"] for line in lines]


def words(prompt: Conversation) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", prompt[-1].content.casefold()))


def test_no_sanity_question_is_among_the_rankings(
    training: list[Ranking], sanity: list[Ranking]
) -> None:
    check_no_leaks(training, sanity, key=words, name="sanity.jsonl")


def test_no_sanity_question_is_a_near_copy_of_one_of_the_rankings(
    training: list[Ranking], sanity: list[Ranking]
) -> None:
    """At most three quarters of the words that two prompts have are in both."""
    prompts = [set(words(ranking.prompt)) for ranking in training]
    for ranking in sanity:
        asked = set(words(ranking.prompt))
        for prompt in prompts:
            assert len(asked & prompt) <= 0.75 * len(asked | prompt), (asked, prompt)


def test_no_response_that_readme_and_documentation_show_is_among_the_rankings(
    training: list[Ranking], sanity: list[Ranking]
) -> None:
    def plain(text: str) -> str:
        return text.casefold().strip(" .")

    learned = {plain(text) for ranking in training for text in ranking.responses}
    for ranking, kind in zip(sanity, kinds(), strict=True):
        if kind == SHOWN:
            assert learned.isdisjoint(map(plain, ranking.responses))


def test_the_sanity_questions_have_what_the_demo_shows(sanity: list[Ranking]) -> None:
    responses_by_prompt = {r.prompt[-1].content: set(r.responses) for r in sanity}
    assert responses_by_prompt[demo.PROMPT] == set(demo.RESPONSES)
    assert responses_by_prompt[demo.SHORT_PROMPT] == set(demo.SHORT_RESPONSES)


def test_the_sanity_questions_are_distinct_and_of_many_kinds(sanity: list[Ranking]) -> None:
    assert len({words(ranking.prompt) for ranking in sanity}) == len(sanity)
    counts = Counter(kinds())
    assert len(counts) >= 10 and sum(counts.values()) - counts[SHOWN] >= 40


def test_the_better_response_is_as_often_the_longer_as_the_shorter_one(
    training: list[Ranking],
) -> None:
    """Otherwise the model could learn a preference for short or for long responses."""
    num_longer = num_shorter = 0
    for ranking in training:
        labelled = [*zip(ranking.ranks, map(len, ranking.responses), strict=True)]
        for (rank, length), (other_rank, other_length) in combinations(labelled, 2):
            if rank != other_rank and length != other_length:
                is_longer = (rank < other_rank) == (length > other_length)
                num_longer += is_longer
                num_shorter += not is_longer
    assert num_longer / (num_longer + num_shorter) == pytest.approx(0.5, abs=0.05)
