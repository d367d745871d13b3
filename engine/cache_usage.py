"""The size of a cache at one moment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUsage:
    """The entries of a cache, their memory, and its limit.

    Attributes:
        entries: the rewards or prefixes that it holds.
        num_bytes: the memory that they take.
        max_bytes: the limit of `num_bytes`.
    """

    entries: int
    num_bytes: int
    max_bytes: int
