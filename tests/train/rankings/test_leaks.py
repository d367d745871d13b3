"""A prompt of the validation file must not be in the training data."""

from collections.abc import Callable, Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.leaks import check_no_leaks
from kwise.train.rankings.schema import Ranking
from kwise.train.rankings.split import split_by_prompt
from kwise.types import Conversation, Message

PROMPTS = st.lists(st.text(alphabet="aAb ", max_size=3), min_size=2, max_size=30)


def rankings(name: str, *prompts: str) -> list[Ranking]:
    return [
        Ranking(
            prompt=(Message(role="user", content=prompt),),
            responses=("good", f"bad {line}"),
            ranks=(1, 2),
            origin=f"{name}:{line}",
        )
        for line, prompt in enumerate(prompts, start=1)
    ]


def first_letter(prompt: Conversation) -> str:
    return prompt[0].content[:1]


def exact(prompt: Conversation) -> Conversation:
    return prompt


def test_the_first_leaks_are_named_with_their_places_and_all_are_counted() -> None:
    training = rankings("t.jsonl", "Why?", "How?", "When?")
    validation = rankings("v.jsonl", "Where?", " HOW?\n", "why?", "Who?")
    with pytest.raises(RankingsError) as raised:
        check_no_leaks(training, validation, exact, "v.jsonl")
    assert raised.value.problems[:3] == (
        "v.jsonl:2: prompt: the training data has it too, in t.jsonl:2",
        "v.jsonl:3: prompt: the training data has it too, in t.jsonl:1",
        "v.jsonl: 2 of 4 rankings cannot be used:",
    )
    assert raised.value.problems[3].startswith(
        "  2 x the prompt is in the training data too, so that the validation would be too good"
    )
    with pytest.raises(RankingsError) as raised:
        check_no_leaks(training, rankings("v.jsonl", *["Why?"] * 500), exact, "v.jsonl")
    assert len(raised.value.problems) == MAX_PROBLEMS + 2
    assert "500 of 500 rankings" in raised.value.problems[MAX_PROBLEMS]


def test_prompts_with_the_same_key_are_one_prompt() -> None:
    training, validation = rankings("t", "apple"), rankings("v", "anchor")
    check_no_leaks(training, validation, exact, "v")
    with pytest.raises(RankingsError, match=r"^v:1: prompt: the training data has it too, in t:1"):
        check_no_leaks(training, validation, first_letter, "v")


@given(PROMPTS, st.floats(0.01, 0.9), st.integers(0, 100), st.sampled_from([exact, first_letter]))
def test_the_parts_of_a_split_have_no_leak_and_a_prompt_moved_between_them_is_one(
    prompts: list[str], fraction: float, seed: int, key: Callable[[Conversation], Hashable]
) -> None:
    try:
        training, validation = split_by_prompt(rankings("f", *prompts), fraction, seed, key)
    except RankingsError:  # all prompts count as one
        return
    check_no_leaks(training, validation, key, "f")
    with pytest.raises(RankingsError, match=f"1 of {len(validation) + 1} rankings cannot be used"):
        check_no_leaks(training, [*validation, training[0]], key, "f")
