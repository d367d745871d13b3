"""The policy for sending a request again, which single calls and streams share.

Every RPC is idempotent, so a request that failed because the server was away or full is sent again
until the caller's time is over. The server's advice sets the pause. Without advice, each pause is
twice the last. gRPC's own retries are not used, because they end after five attempts.
"""

from collections.abc import Callable
from random import uniform
from time import monotonic

from kwise.client.errors import RewardServiceError
from kwise.errors import Status

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.2, 5.0


def is_retried(failure: RewardServiceError) -> bool:
    """Return whether the same request may succeed later."""
    if failure.status is Status.RESOURCE_EXHAUSTED:
        # Without advice, the message exceeds gRPC's size limit, and another try would fail too.
        return failure.retry_after_s is not None
    # A server whose grace period is over cancels its calls.
    return failure.status in (Status.UNAVAILABLE, Status.CANCELLED)


class Backoff:
    """Pauses between attempts, random so that clients refused together do not return together."""

    def __init__(self) -> None:
        self._refusals = 0

    def reset(self) -> None:
        """Start with the shortest pause again, after an answer."""
        self._refusals = 0

    def pause_s(self, retry_after_s: float | None) -> float:
        """Return the seconds to wait. `retry_after_s` is the server's advice, or None."""
        max_pause_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**self._refusals)
        self._refusals += 1
        if retry_after_s:
            return uniform(retry_after_s, 1.25 * retry_after_s)
        return uniform(max_pause_s / 2, max_pause_s)


class Attempts:
    """The attempts at one call, within `timeout_s` seconds."""

    def __init__(self, timeout_s: float, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._ends_at = now() + timeout_s
        self._backoff = Backoff()
        self._refusal: RewardServiceError | None = None  # the server's last answer

    @property
    def left_s(self) -> float:
        """The seconds that are left for the call; 0 if there are none."""
        return max(self._ends_at - self._now(), 0.0)

    def pause_s(self, failure: RewardServiceError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            RewardServiceError: `failure`, if another attempt cannot help or would come too late; or
                the server's last refusal, if the time ended during an attempt.
        """
        if failure.status is Status.DEADLINE_EXCEEDED and self._refusal is not None:
            raise self._refusal
        pause_s = self._backoff.pause_s(failure.retry_after_s)
        if not is_retried(failure) or pause_s >= self.left_s:
            raise failure
        self._refusal = failure
        return pause_s
