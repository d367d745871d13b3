"""Progress on standard error: a line that is redrawn on a terminal, or one every 30 seconds."""

import sys
from collections.abc import Callable
from time import monotonic
from typing import TextIO

from kwise.bulk.output.run_record import Counts
from kwise.duration import duration

_TERMINAL_S, _LOG_S = 0.5, 30.0


class Progress:
    """Reports how far a run has come.

    Args:
        total_rows: the rows of the input, exactly or roughly; None if nobody knows.
        before: what earlier parts of the run have done, which took no time of this one.
        is_shown: False if the output is on the same terminal.
        stream: where the lines go; standard error by default.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        total_rows: int | None,
        before: Counts,
        *,
        is_shown: bool = True,
        stream: TextIO | None = None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._total_rows = total_rows
        self._before = before
        self._is_shown = is_shown
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._now = now
        self._started_s = self._shown_s = now()
        self._width = 0

    def update(self, counts: Counts) -> None:
        """Show where the run is, unless that was shown a moment ago."""
        now_s = self._now()
        pause_s = _TERMINAL_S if self._is_terminal else _LOG_S
        if not self._is_shown or now_s - self._shown_s < pause_s:
            return
        self._shown_s = now_s
        line = self.line(counts, now_s - self._started_s)
        if self._is_terminal:
            self._stream.write(f"\r{line.ljust(self._width)}")
            self._width = len(line)
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Remove the line from a terminal."""
        if self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()
            self._width = 0

    def line(self, counts: Counts, seconds: float) -> str:
        """Return the line of progress."""
        rows_per_s = (counts.rows - self._before.rows) / max(seconds, 1e-9)
        tokens_per_s = (counts.tokens - self._before.tokens) / max(seconds, 1e-9)
        done, left = f"{counts.rows:,}", ""
        if self._total_rows is not None:
            total = max(self._total_rows, counts.rows)
            done += f" of about {total:,} ({counts.rows / max(total, 1):.0%})"
            if rows_per_s:
                left = f", {duration((total - counts.rows) / rows_per_s)} left"
        return f"{done} groups, {rows_per_s:,.1f} groups/s, {tokens_per_s:,.0f} tokens/s{left}"

    @property
    def elapsed_s(self) -> float:
        """The seconds since the beginning."""
        return self._now() - self._started_s
