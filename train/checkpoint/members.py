"""The members of an ensemble in one checkpoint: what config.json states about them.

A head with M outputs may be a classifier, a reward model with M objectives, or M reward models
over one backbone. Its shape does not say which, so `kwise_members` in config.json does. The key
states the number too, because transformers does not write `num_labels` if it is 2.

The loss of pairs leaves the zero of a reward open, so each member has a zero of its own.
`kwise_member_means` has the mean reward of each member on the same responses of the training data,
and member i's reward is its output minus the i-th mean.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from kwise.errors import ConfigError

MEMBERS_KEY = "kwise_members"
MEANS_KEY = "kwise_member_means"
MAX_MEMBERS = 100


def num_members(place: str, stated: Mapping[str, Any]) -> int:
    """Return the number of members that the content of a config.json states; 1 if it states none.

    Args:
        place: what the user calls the checkpoint; the error begins with it.

    Raises:
        ConfigError: the value is not an integer from 2 to `MAX_MEMBERS`.
    """
    value = stated.get(MEMBERS_KEY)
    if value is None:
        return 1
    if type(value) is not int or not 2 <= value <= MAX_MEMBERS:
        raise ConfigError(
            f"{place}: config.json has {MEMBERS_KEY} {value!r}; it must be an integer from 2 to "
            f"{MAX_MEMBERS}"
        )
    return value


def member_means(place: str, stated: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the mean of each member; zeros if none are stated, () for an ordinary reward model.

    Raises:
        ConfigError: `kwise_member_means` is not a list of as many finite numbers as there are
            members.
    """
    members, value = num_members(place, stated), stated.get(MEANS_KEY)
    if value is None:
        return (0.0,) * members if members > 1 else ()
    if members == 1:
        raise ConfigError(f"{place}: config.json has {MEANS_KEY} and no {MEMBERS_KEY}")
    numbers = value if isinstance(value, list) else []
    if len(numbers) != members or not all(map(is_finite_number, numbers)):
        raise ConfigError(
            f"{place}: config.json has {MEANS_KEY} {value!r}; it must be a list of {members} "
            f"finite numbers, as {MEMBERS_KEY} says"
        )
    return tuple(map(float, numbers))


def members_of(config: PretrainedConfig) -> int:
    """Return the number of members of a loaded config; 1 for an ordinary reward model."""
    return int(getattr(config, MEMBERS_KEY, None) or 1)


def means_of(config: PretrainedConfig) -> tuple[float, ...]:
    """Return the mean of each member of a loaded config; zeros if it has none."""
    return tuple(getattr(config, MEANS_KEY, None) or (0.0,) * members_of(config))


def state_members(config: PretrainedConfig, members: int, means: Sequence[float] = ()) -> None:
    """Write the number of members and their means, if there are any, into a config."""
    for key, value in ((MEMBERS_KEY, members if members > 1 else None), (MEANS_KEY, list(means))):
        if value:
            setattr(config, key, value)
        elif hasattr(config, key):
            delattr(config, key)


def is_finite_number(value: Any) -> bool:
    """Return whether a value of a config.json is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
