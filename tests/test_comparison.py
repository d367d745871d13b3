"""Ranks, margins and win probabilities depend only on the raw rewards, in any order and size."""

from itertools import combinations
from math import inf, isclose, isfinite, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.comparison import compare, ranks, win_probability
from kwise.engine.artifact.members import ensemble_reward
from kwise.errors import InvalidRequest, KwiseError, ModelFailed
from kwise.types import Reward

RAW = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, -1.0, 1e6, -1e6])
REWARDS = RAW.map(lambda raw: Reward(value=0.0, raw=raw, tokens=1))
OUTCOMES = st.lists(REWARDS | st.builds(ModelFailed), max_size=7)


def test_equal_rewards_share_a_rank() -> None:
    rewards = [Reward(value=0, raw=raw, tokens=1) for raw in (2.0, 5.0, 2.0, 1.0)]
    assert ranks(rewards) == [2, 1, 2, 4]


def test_nan_has_no_rank_and_does_not_change_the_others() -> None:
    rewards = [Reward(value=0, raw=raw, tokens=1) for raw in (2.0, nan, 5.0, nan, -inf)]
    assert ranks(rewards) == [2, None, 1, None, 3]


def test_members_with_different_scales_are_ranked_by_their_values() -> None:
    """The second member's scale is a thousand times that of the first, and decides `raw`."""
    members = [((1.0, 0.5), (1.0, 500.0)), ((0.0, 1.0), (0.0, 1000.0))]
    rewards = [ensemble_reward(values=values, raw=raw, tokens=1) for values, raw in members]
    assert rewards[1].raw > rewards[0].raw
    assert ranks(rewards) == [1, 2]


@given(OUTCOMES)
def test_rank_is_one_more_than_how_many_are_better(outcomes: list[Reward | KwiseError]) -> None:
    ordered = sorted((r.raw for r in outcomes if isinstance(r, Reward)), reverse=True)
    expected = [ordered.index(r.raw) + 1 if isinstance(r, Reward) else None for r in outcomes]
    assert ranks(outcomes) == expected


@given(
    OUTCOMES.flatmap(
        lambda outcomes: st.tuples(st.just(outcomes), st.permutations(range(len(outcomes))))
    )
)
def test_permuting_responses_permutes_their_ranks(
    case: tuple[list[Reward | KwiseError], list[int]],
) -> None:
    outcomes, order = case
    ranked = ranks(outcomes)
    assert ranks([outcomes[i] for i in order]) == [ranked[i] for i in order]


@given(st.floats(-2e6, 2e6))
def test_win_probability_is_finite_and_symmetric(margin: float) -> None:
    probability = win_probability(margin)
    assert isfinite(probability)
    assert 0 <= probability <= 1
    assert isclose(probability + win_probability(-margin), 1, abs_tol=1e-15)


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.0, 0.5), (1e6, 1.0), (-1e6, 0.0), (1.0, 0.7310585786300049)]
)
def test_win_probability_is_the_logistic_function(margin: float, expected: float) -> None:
    assert win_probability(margin) == pytest.approx(expected, abs=1e-15)


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_win_probability_never_falls_as_the_margin_grows(a: float, b: float) -> None:
    assert win_probability(min(a, b)) <= win_probability(max(a, b))


@given(OUTCOMES)
def test_no_pairs_given_means_all_in_order(outcomes: list[Reward | KwiseError]) -> None:
    comparisons = compare(outcomes)
    assert [(c.first, c.second) for c in comparisons] == list(combinations(range(len(outcomes)), 2))
    for comparison in comparisons:
        a, b = outcomes[comparison.first], outcomes[comparison.second]
        if isinstance(a, Reward) and isinstance(b, Reward):
            assert comparison.error is None
            assert comparison.margin == a.raw - b.raw
            assert comparison.win_probability == win_probability(a.raw - b.raw)
        else:
            assert comparison.error in (a, b)
            assert isnan(comparison.margin)
            assert isnan(comparison.win_probability)  # 0 would say that the second wins


@given(st.lists(REWARDS, min_size=1, max_size=5), st.data())
def test_pairs_are_answered_as_asked(rewards: list[Reward], data: st.DataObject) -> None:
    index = st.integers(0, len(rewards) - 1)
    pairs = data.draw(st.lists(st.tuples(index, index), min_size=1))
    answers = compare(rewards, pairs)
    assert [(c.first, c.second) for c in answers] == pairs
    for there, back in zip(answers, compare(rewards, [(b, a) for a, b in pairs]), strict=True):
        assert there.margin == -back.margin
        assert isclose(there.win_probability + back.win_probability, 1, abs_tol=1e-15)


@pytest.mark.parametrize("pair", [(0, 2), (2, 0), (-1, 0), (0, -1)])
def test_pair_of_a_missing_response_is_named(pair: tuple[int, int]) -> None:
    rewards = [Reward(value=0, raw=0, tokens=1)] * 2
    with pytest.raises(InvalidRequest, match=r"does not exist; there are 2") as raised:
        compare(rewards, [(0, 1), pair])
    assert raised.value.field == "pairs[1]"
