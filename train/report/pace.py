"""The pace of work on rankings: tokens per second, the time that is left, and when to say so."""

from collections.abc import Callable
from time import monotonic

from kwise.duration import duration

_PAUSE_S = 10.0
# Of the whole time, so that a run of ten hours has 50 lines and not 3,600.
_PAUSE_SHARE = 0.02


class Pace:
    """Counts what is done, and says now and then how far the work has come.

    Args:
        total: the rankings of the whole work.
        now: a clock, in seconds.
    """

    def __init__(self, total: float, now: Callable[[], float] = monotonic) -> None:
        self._total, self._now = total, now
        self._done, self._tokens = 0.0, 0.0
        self._started_s = self._said_s = now()

    def add(self, rankings: float, tokens: float) -> bool:
        """Count rankings and the tokens of their conversations as done.

        Returns:
            Whether a line is due: 10 seconds and 2 % of the expected time have passed since the
            last one, and work is left.
        """
        self._done += rankings
        self._tokens += tokens
        pause_s = max(_PAUSE_S, _PAUSE_SHARE * (self.elapsed_s + self.left_s))
        return self._done < self._total and self._now() - self._said_s >= pause_s

    def say(self) -> str:
        """Return the pace as text: "1,234 tokens/s, 3 min 20 s left"."""
        self._said_s = self._now()
        return f"{self.tokens_per_s:,.0f} tokens/s, {duration(self.left_s)} left"

    @property
    def done(self) -> float:
        """The share of the work that is done, at most 1."""
        return min(self._done / self._total, 1.0)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of conversations per second; a prompt counts for each of its responses."""
        return self._tokens / max(self.elapsed_s, 1e-9)

    @property
    def elapsed_s(self) -> float:
        """The seconds since the beginning."""
        return self._now() - self._started_s

    @property
    def left_s(self) -> float:
        """The seconds that the rest takes at the pace so far; 0 before anything is done."""
        left = max(self._total - self._done, 0.0)
        return self.elapsed_s * left / self._done if self._done else 0.0
