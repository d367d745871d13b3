"""Functions with which the benchmarks read a row and count a pair."""

from collections.abc import Collection

from kwise.train.data.rows.fields import (
    as_list,
    as_string,
    refuse,
    required,
    string_field,
    user_prompt,
)
from kwise.train.data.rows.messages import as_messages
from kwise.train.data.rows.row import Row
from kwise.types import Conversation


def prompt_of(row: Row, key: str = "prompt") -> Conversation:
    """Return the prompt of a row: one message of the user as a text, or a list of messages.

    A text is taken as it is. It may look like a conversation, and is one message all the same.
    """
    value = required(row, key)
    return user_prompt(value) if isinstance(value, str) else as_messages(value, key)


def texts_of(row: Row, key: str) -> tuple[str, ...]:
    """Return the texts of a list in a row, at least one."""
    values = as_list(required(row, key), key)
    if not values:
        refuse(key, "must not be empty")
    return tuple(as_string(text, f"{key}[{index}]") for index, text in enumerate(values))


def known_subset(row: Row, key: str, subsets: Collection[str]) -> str:
    """Return the subset that a row names."""
    subset = string_field(row, key)
    if subset not in subsets:
        refuse(key, f"is {subset[:40]!a}; the benchmark has {', '.join(sorted(subsets))}")
    return subset


def is_higher(right: float, wrong: float) -> float:
    """Return 1 if the right response has the higher reward, else 0, also if both are equal.

    The official scripts count so. The pairwise accuracy of kwise counts equal rewards one half.
    """
    return float(right > wrong)
