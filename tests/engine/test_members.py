"""The reward of a model with members is what numpy makes of its members' rewards."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.engine.artifact.members import ensemble_reward
from kwise.types import MAX_SCALE, MIN_STD, Reward

FINITE = st.floats(-1e6, 1e6)
MEMBERS = st.lists(st.tuples(FINITE, FINITE, st.floats(1e-3, 1e3)), min_size=1, max_size=9)


def _reward(members: list[tuple[float, float, float]]) -> Reward:
    return ensemble_reward(
        values=[(raw - mean) / std for raw, mean, std in members],
        raw=[raw for raw, _, _ in members],
        tokens=1,
    )


@given(MEMBERS)
def test_mean_deviation_and_minimum_are_those_of_numpy(
    members: list[tuple[float, float, float]],
) -> None:
    raw, mean, std = np.array(members).T
    values = (raw - mean) / std
    reward = _reward(members)
    scale = np.abs(values).max()
    assert reward.members == tuple(values)
    assert reward.value == pytest.approx(values.mean(), rel=1e-12, abs=1e-12 * scale)
    assert reward.std == pytest.approx(values.std(), rel=1e-9, abs=1e-12 * scale)
    assert reward.min == values.min()
    assert reward.raw == pytest.approx(raw.mean(), rel=1e-12, abs=1e-12 * np.abs(raw).max())


@given(MEMBERS.flatmap(lambda members: st.tuples(st.just(members), st.permutations(members))))
def test_the_order_of_the_members_does_not_matter(
    case: tuple[list[tuple[float, float, float]], list[tuple[float, float, float]]],
) -> None:
    first, second = map(_reward, case)
    assert (first.value, first.std, first.min, first.raw) == (
        second.value,
        second.std,
        second.min,
        second.raw,
    )


@given(FINITE, st.integers(1, 9))
def test_members_that_agree_have_their_own_reward_and_no_deviation(raw: float, size: int) -> None:
    reward = ensemble_reward(values=[raw] * size, raw=[raw] * size, tokens=3, cached=True)
    assert (reward.value, reward.raw) == pytest.approx((raw, raw), rel=1e-15)
    assert reward.min == raw
    assert reward.std == pytest.approx(0, abs=1e-15 * abs(raw))
    assert (reward.tokens, reward.cached) == (3, True)


@pytest.mark.parametrize(("values", "raw"), [([], []), ([1.0], []), ([1.0], [1.0, 2.0])])
def test_one_value_and_one_raw_reward_per_member_are_needed(
    values: list[float], raw: list[float]
) -> None:
    with pytest.raises(ValueError, match="one per member"):
        ensemble_reward(values=values, raw=raw, tokens=1)


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False, width=32),
            st.floats(-MAX_SCALE, MAX_SCALE),
            st.floats(MIN_STD, MAX_SCALE),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_no_reward_overflows_within_the_bounds_of_mean_and_std(
    members: list[tuple[float, float, float]],
) -> None:
    reward = _reward(members)
    assert reward.std is not None
    assert all(map(math.isfinite, (reward.value, reward.raw, reward.std, *reward.members)))
