"""The report of a conversion: the number of rows read, skipped and written."""

from collections import Counter
from dataclasses import dataclass, field

from kwise.train.data.formats.table import FormatName
from kwise.train.rankings.problems import Problems

UNREADABLE = ("row", "cannot be read (--skip-bad)")
"""What is skipped, and why, for rows that are problems without --skip-bad."""


@dataclass(slots=True, kw_only=True)
class ConversionReport:
    """Counts and problems, filled in while rows are converted.

    skipped: counts by (what, reason), see `Skipped`.
    merging: what an option --merge did.
    problems: of rows that cannot be read.
    """

    format: FormatName | None = None
    num_rows: int = 0
    num_rankings: int = 0
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    merging: str = ""
    problems: Problems = field(default_factory=Problems)

    @property
    def first_unreadable(self) -> str:
        """The problem of the first row that cannot be read, or an empty string."""
        return self.problems.first

    def lines(self, *, is_written: bool = True) -> list[str]:
        """Return the report for people; standard error gets it."""
        name = self.format.value if self.format else "no format"
        num_written = self.num_rankings if is_written else "no"
        lines = [f"{name}: {self.num_rows} rows read, {num_written} rankings written"]
        lines += [
            f"skipped: {num} x {what}: {reason}"
            for (what, reason), num in sorted(self.skipped.items())
        ]
        if UNREADABLE in self.skipped:
            lines += self.problems.lines(name, self.num_rows)
        if self.merging:
            lines.append(f"note: {self.merging}")
        return lines + [f"note: {num} x {reason}" for reason, num in sorted(self.notes.items())]
