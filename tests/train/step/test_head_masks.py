"""Each prompt is shown to the same random heads, whatever else the data has."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.train.step.head_masks import head_mask, num_learning
from kwise.types import Conversation, Message

HEADS = st.integers(1, 100)
SHARES = st.floats(0, 1, exclude_min=True)


def prompt_of(text: str) -> Conversation:
    return (Message(role="user", content=text),)


@given(st.text(), HEADS, SHARES, st.integers(0, 2**32 - 1))
def test_every_prompt_has_the_same_number_of_heads_and_never_none(
    text: str, heads: int, share: float, seed: int
) -> None:
    mask = head_mask(prompt_of(text), heads, share, seed)
    assert len(mask) == heads
    assert sum(mask) == num_learning(heads, share) >= 1
    assert abs(sum(mask) - share * heads) <= 0.5 or sum(mask) == 1
    # A function of prompt and seed: no order, batch, process or resumed run can change it.
    assert mask == head_mask(prompt_of(text), heads, share, seed)


@given(st.text(), HEADS, st.integers(0, 2**32 - 1))
def test_all_heads_learn_from_everything_with_a_share_of_1(
    text: str, heads: int, seed: int
) -> None:
    assert all(head_mask(prompt_of(text), heads, 1, seed))


def test_rankings_of_one_prompt_go_to_the_same_heads_also_if_its_case_differs() -> None:
    one, other = (head_mask(prompt_of(t), 10, 0.5, 0) for t in ("Why  so?", "why so? "))
    assert one == other


def test_heads_learn_from_different_prompts_and_each_from_its_share() -> None:
    masks = [head_mask(prompt_of(f"Question {n}?"), 5, 0.6, 0) for n in range(1000)]
    by_head = [sum(mask[head] for mask in masks) for head in range(5)]
    # 600 expected, with a standard deviation of 15.5 of independent draws.
    assert all(540 < count < 660 for count in by_head), by_head
    # 10 ways to choose 3 of 5 heads, 100 prompts each expected.
    ways = Counter(masks)
    assert len(ways) == 10 and all(60 < count < 140 for count in ways.values()), ways


@pytest.mark.parametrize(("heads", "share", "expected"), [(5, 0.6, 3), (5, 0.01, 1), (3, 0.5, 2)])
def test_the_share_is_rounded(heads: int, share: float, expected: int) -> None:
    assert num_learning(heads, share) == expected


def test_another_seed_draws_other_heads() -> None:
    prompts = [prompt_of(str(number)) for number in range(50)]
    first, second = ([head_mask(p, 5, 0.4, seed) for p in prompts] for seed in (0, 1))
    assert first != second
