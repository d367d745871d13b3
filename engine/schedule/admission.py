"""The limit on waiting tokens, and the part of it that each client may use."""

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from kwise.errors import Overloaded


class Counted(Protocol):
    """A reward that waits, as admission sees it.

    client: the client whose share it takes.
    queued_tokens: the tokens that admission counts for it now.
    """

    client: str
    queued_tokens: int

    @property
    def cost(self) -> int:
        """Its tokens."""


class Admission:
    """Counts the tokens that wait, in total and by client.

    The waiting tokens of a client may not exceed the tokens that remain free (the dynamic threshold
    of Choudhury and Hahne, 1998), so one client with many groups fills at most half of the limit.
    The first group of a client only needs to fit. If nothing waits, any group is admitted, so that
    a group that is larger than the limit is served too.

    Args:
        max_queue_tokens: the limit.
        seconds_for: returns the seconds that the model needs for a number of tokens.
    """

    def __init__(self, max_queue_tokens: int, seconds_for: Callable[[int], float]) -> None:
        self._max_queue_tokens = max_queue_tokens
        self._seconds_for = seconds_for
        self._tokens_of: Counter[str] = Counter()
        self.num_tokens = 0

    def check(self, num_tokens: int, client: str) -> None:
        """Raise Overloaded if `client` may not add `num_tokens` now."""
        waiting, own = self.num_tokens, self._tokens_of[client]
        excess = waiting + num_tokens - self._max_queue_tokens
        if own:
            excess += own + num_tokens
        if waiting and excess > 0:
            retry_after_s = min(max(0.05, self._seconds_for(min(excess, waiting))), 10.0)
            raise Overloaded(waiting, own, self._max_queue_tokens, retry_after_s)

    def count(self, reward: Counted) -> None:
        """Count the reward's tokens as waiting; again when its cost is known exactly."""
        self._set(reward, reward.cost)

    def release(self, reward: Counted) -> None:
        """Stop counting the reward's tokens, because it no longer waits."""
        self._set(reward, 0)

    def _set(self, reward: Counted, num_tokens: int) -> None:
        change = num_tokens - reward.queued_tokens
        reward.queued_tokens = num_tokens
        self.num_tokens += change
        self._tokens_of[reward.client] += change
        if not self._tokens_of[reward.client]:
            del self._tokens_of[reward.client]
