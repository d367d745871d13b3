"""The lines at the end of a run: what was done, and an example of each kind of problem."""

import re
from typing import Any

from kwise.bulk.output.run_record import Counts
from kwise.duration import duration

_MAX_KINDS = 5


class Problems:
    """Counts problems by kind. Those that differ in numbers and quoted names alone are one kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, problem: dict[str, Any]) -> None:
        """Count a problem."""
        field, reason = problem.get("field"), problem["reason"]
        text = f"{field}: {reason}" if field else reason
        place = f"{problem['file']}:{problem['line']}" if problem["line"] else problem["file"]
        kind = re.sub(r"'[^']*'|\d+", "…", text)
        if kind not in self._kinds and len(self._kinds) == 1000:
            kind = "…"  # so that memory is bounded whatever the messages are
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        self._examples.setdefault(kind, f"{place}: {text}")

    def lines(self) -> list[str]:
        """Return a line per kind, the most frequent ones first, each with its first example."""
        kinds = sorted(self._kinds.items(), key=lambda kind: -kind[1])
        lines = [f"  {num:,} × {self._examples[kind]}" for kind, num in kinds[:_MAX_KINDS]]
        if rest := sum(num for _, num in kinds[_MAX_KINDS:]):
            lines.append(f"  {rest:,} × other problems")
        return lines


def summary_lines(
    counts: Counts, before: Counts, problems: Problems, *, seconds: float, bad_rows: str
) -> list[str]:
    """Return the lines of the summary.

    Args:
        counts: what the run has done in all.
        before: what earlier parts of it have done.
        problems: those of this part.
        seconds: the time that this part took.
        bad_rows: the file of the bad rows; "" if there is none.
    """
    rows = counts.rows - counts.unread_files - (before.rows - before.unread_files)
    tokens = counts.tokens - before.tokens
    scored = counts.rows - counts.unread_files - counts.bad_rows
    lines = [
        f"{_counted(scored, 'group')} with {_counted(counts.responses, 'response')} scored, "
        f"{_counted(counts.written_rows, 'row')} written; {_counted(rows, 'row')} in "
        f"{duration(seconds)}: {rows / max(seconds, 1e-9):,.1f} groups/s, "
        f"{tokens / max(seconds, 1e-9):,.0f} tokens/s"
    ]
    if counts.has_failures:
        where = f"; see {bad_rows}" if bad_rows else ""
        if failures := _failures(counts):
            lines.append(f"not scored: {failures}{where}")
        if counts.unread_files:
            lines.append(f"not read to the end: {_counted(counts.unread_files, 'file')}{where}")
        lines += problems.lines()
    return lines


def _failures(counts: Counts) -> str:
    """Return what was not scored: "2 rows and 1 response of other rows"."""
    failed = [_counted(counts.bad_rows, "row")] if counts.bad_rows else []
    if counts.failed_responses:
        responses = _counted(counts.failed_responses, "response")
        failed.append(f"{responses} of other rows" if failed else responses)
    return " and ".join(failed)


def _counted(num: int, noun: str) -> str:
    return f"{num:,} {noun}{'' if num == 1 else 's'}"
