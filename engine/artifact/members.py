"""Combine the rewards of the members of a model into one.

A model with members scores a response M times: by M heads over one backbone, or by M models. Its
reward is the mean of the members' rewards, and the standard deviation says how far the members
disagree. Each member is normalised by its own mean and std before they are combined, so that a
member with a larger scale does not outweigh the others.
"""

from collections.abc import Sequence
from math import fsum, sqrt

from kwise.types import Reward


def ensemble_reward(
    *,
    values: Sequence[float],
    raw: Sequence[float],
    tokens: int,
    dropped_tokens: int = 0,
    control_tokens: int = 0,
    cached: bool = False,
) -> Reward:
    """Return the reward of a response from those of the M members.

    `value` is the mean of the values, `std` their population standard deviation (the divisor is
    M), `min` the smallest, and `raw` the mean of the raw rewards. The order of the members does
    not change them.

    Args:
        values: the reward of each member, (raw - mean) / std with its own mean and std.
        raw: the raw reward of each member, in the same order.
        tokens, dropped_tokens, control_tokens, cached: see `Reward`.

    Raises:
        ValueError: there are no values, or another number of raw rewards.
    """
    num_members = len(values)
    if not num_members or len(raw) != num_members:
        raise ValueError(f"{num_members} values and {len(raw)} raw rewards; give one per member")
    value = fsum(values) / num_members
    return Reward(
        value=value,
        raw=fsum(raw) / num_members,
        tokens=tokens,
        dropped_tokens=dropped_tokens,
        control_tokens=control_tokens,
        cached=cached,
        std=sqrt(fsum((v - value) ** 2 for v in values) / num_members),
        min=min(values),
        members=tuple(values),
    )
