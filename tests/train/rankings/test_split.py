"""The validation split: a prompt is in one part, whatever the order of the rankings."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kwise.train.rankings.prompt_key import prompt_key
from kwise.train.rankings.schema import Ranking
from kwise.train.rankings.split import split_by_prompt
from kwise.types import Message

PROMPTS = st.lists(st.text(alphabet="aAb ", max_size=2), min_size=2, max_size=30).filter(
    lambda p: len({text.lower().strip() for text in p}) > 1
)


@given(PROMPTS, st.floats(0.01, 0.9), st.integers(0, 100), st.randoms(use_true_random=False))
def test_a_prompt_is_in_one_part_whatever_the_order(
    prompts: list[str], fraction: float, seed: int, random: Any
) -> None:
    rankings = [
        Ranking(prompt=(Message(role="user", content=p),), responses=("x", str(i)), ranks=(1, 2))
        for i, p in enumerate(prompts)
    ]
    training, validation = split_by_prompt(rankings, fraction, seed)
    validation_prompts = {ranking.prompt for ranking in validation}
    assert training and validation and len(training) + len(validation) == len(rankings)
    assert {prompt_key(prompt) for prompt in validation_prompts}.isdisjoint(
        prompt_key(ranking.prompt) for ranking in training
    )
    random.shuffle(rankings)
    assert {
        ranking.prompt for ranking in split_by_prompt(rankings, fraction, seed)[1]
    } == validation_prompts
