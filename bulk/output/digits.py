"""Numbers with the digits of float32."""

import struct
from typing import Any

from kwise.types import Reward

_FLOAT32 = struct.Struct("<f")
# Seven digits tell most values apart that a model returns; nine tell all of float32 apart.
_FEWEST, _MOST = 6, 9


def float32_digits(value: float) -> float:
    """Return the number with the fewest digits that is `value` rounded to float32.

    Rewards are computed in float32, so that further digits say nothing. Python writes the number
    that this returns with these digits: 0.1 for float32's 0.10000000149011612. A value that is
    beyond the range of float32 is returned as it is.
    """
    try:
        (rounded,) = _FLOAT32.unpack(_FLOAT32.pack(value))
    except OverflowError:
        return value
    for digits in range(_FEWEST, _MOST):
        shortest = float(f"{rounded:.{digits}g}")
        if _FLOAT32.unpack(_FLOAT32.pack(shortest))[0] == rounded:
            return shortest
    return float(f"{rounded:.{_MOST}g}")


def member_digits(reward: Reward) -> dict[str, Any]:
    """Return `std`, `min` and `members` of a reward; nothing if the model has no members."""
    if reward.std is None or reward.min is None:
        return {}
    return {
        "std": float32_digits(reward.std),
        "min": float32_digits(reward.min),
        "members": [float32_digits(member) for member in reward.members],
    }
