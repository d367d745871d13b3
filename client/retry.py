"""When to send again what a server refused or lost: one policy for single calls and for streams.

Every rpc is idempotent, so what failed for want of a server or of room is sent again until the caller's time is over, at the
server's advice where it gives one, else after pauses that double. gRPC's own retries end after five attempts.
"""

from collections.abc import Callable
from random import uniform
from time import monotonic

from kwise.client.results import RewardServiceError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


def is_retried(failure: RewardServiceError) -> bool:
    """Whether the same request may succeed later. A message over gRPC's limit is RESOURCE_EXHAUSTED too, without advice."""
    if failure.code == "RESOURCE_EXHAUSTED":
        return failure.retry_after_s is not None
    # A server whose grace has ended cancels its calls.
    return failure.code in {"UNAVAILABLE", "CANCELLED"}


class Backoff:
    """Pauses between attempts, spread at random so that clients refused together do not come back together."""

    def __init__(self) -> None:
        self._refusals = 0

    def reset(self) -> None:
        """There was an answer."""
        self._refusals = 0

    def pause_s(self, retry_after_s: float | None) -> float:
        """Seconds to wait, `retry_after_s` being the server's advice."""
        longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._refusals)
        self._refusals += 1
        if retry_after_s:
            return uniform(retry_after_s, 1.25 * retry_after_s)
        return uniform(longest_s / 2, longest_s)


class Attempts:
    """The attempts at one call, within `timeout_s` seconds."""

    def __init__(self, timeout_s: float, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._ends_at = now() + timeout_s
        self._backoff = Backoff()

    @property
    def left_s(self) -> float:
        return max(self._ends_at - self._now(), 0.0)

    def pause_s(self, failure: RewardServiceError) -> float:
        """Seconds to wait before the next attempt. Raises `failure` where another would not help, or there is no time for it."""
        pause_s = self._backoff.pause_s(failure.retry_after_s)
        if not is_retried(failure) or pause_s >= self.left_s:
            raise failure
        return pause_s
