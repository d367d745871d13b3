"""The problems of a file, as lines for people.

A file may have a problem in each of a million rows. The first few show what is wrong, and the
counts per reason show whether there is anything else. All commands that read rankings report so.
"""

import re
from collections import Counter

from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError

MAX_REASONS = 8
"""The number of reasons to count in the summary; the rest are counted together."""

# A file may give every row a reason of its own; those after the first thousand are other reasons.
_MAX_DISTINCT = 1000
_NUMBER = re.compile(r"\d+(\.\d+)?")


class Problems:
    """Collects problems: the first `max_lines` as they are, and the number of all by reason."""

    def __init__(self, max_lines: int = MAX_PROBLEMS) -> None:
        self._max_lines = max_lines
        self._lines: list[str] = []
        self._num_by_reason: Counter[str] = Counter()
        self._first_origin: dict[str, str] = {}
        self._text: dict[str, str | None] = {}  # of a reason; None if its problems differ
        self._num_others = 0
        self._last_lines: list[str] = []

    def __len__(self) -> int:
        """Return the number of problems."""
        return self._num_rows() + len(self._last_lines)

    @property
    def first(self) -> str:
        """The first problem, or an empty string."""
        return next(iter(self._lines), "")

    @property
    def ended(self) -> bool:
        """True if rows are left that cannot be found."""
        return bool(self._last_lines)

    def add(self, problem: str, *, origin: str, reason: str = "") -> None:
        """Add the problem of one row.

        Args:
            problem: the whole line, which begins with the origin.
            origin: "FILE:ROW".
            reason: what to count it under; by default the problem without its origin. Problems
                that differ only in numbers are counted together, with … for each number.
        """
        if len(self._lines) < self._max_lines:
            self._lines.append(problem)
        text = reason or problem.removeprefix(origin).removeprefix(": ")
        reason = reason or _NUMBER.sub("…", text)
        if reason not in self._num_by_reason and len(self._num_by_reason) == _MAX_DISTINCT:
            self._num_others += 1
            return
        self._num_by_reason[reason] += 1
        self._first_origin.setdefault(reason, origin)
        if self._text.setdefault(reason, text) != text:
            self._text[reason] = None

    def add_end(self, error: RankingsError) -> None:
        """Add the reason why no further row can be read. It is always reported."""
        self._last_lines += error.problems

    def lines(self, name: str, num_rows: int, rows: str = "rows") -> list[str]:
        """Return the first problems, then a summary with the number of problems per reason.

        The reason of a single problem is not repeated.

        Args:
            name: of the file, for the summary "NAME: 3 of 12 rows cannot be used".
            num_rows: the number of rows that were read, good ones included.
            rows: what they are called.
        """
        lines = [*self._lines, *self._last_lines]
        num_problems = self._num_rows()
        summary = f"{name}: {num_problems} of {num_rows} {rows} cannot be used"
        if num_problems < 2:
            return [*lines, summary] if num_problems and num_rows > 1 else lines
        shown = f" (the first {len(self._lines)} above)" if num_problems > len(self._lines) else ""
        reasons = self._num_by_reason.most_common(MAX_REASONS)
        counts = [
            f"  {num} x {self._text[reason] or reason} (first {self._first_origin[reason]})"
            for reason, num in reasons
        ]
        if num_others := num_problems - sum(num for _, num in reasons):
            counts.append(f"  {num_others} x other reasons")
        return [*lines, f"{summary}{shown}:", *counts]

    def _num_rows(self) -> int:
        return self._num_by_reason.total() + self._num_others

    def raise_if_any(self, name: str, num_rows: int, rows: str = "rows") -> None:
        """Raise RankingsError with `lines` if there are problems."""
        if self:
            raise RankingsError(self.lines(name, num_rows, rows))
