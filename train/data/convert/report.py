"""The report of a conversion: the number of rows read, skipped and written."""

from collections import Counter
from dataclasses import dataclass, field

from kwise.train.data.formats.table import FormatName


@dataclass(slots=True, kw_only=True)
class ConversionReport:
    """Counts and problems, filled in while rows are converted.

    skipped: counts by (what, reason), see `Skipped`.
    first_unreadable: the problem of the first row that --skip-bad skipped.
    """

    format: FormatName | None = None
    num_rows: int = 0
    num_rankings: int = 0
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    first_unreadable: str = ""

    def lines(self, *, is_written: bool = True) -> list[str]:
        """Return the report for people; standard error gets it."""
        name = self.format.value if self.format else "no format"
        num_written = self.num_rankings if is_written else "no"
        lines = [f"{name}: {self.num_rows} rows read, {num_written} rankings written"]
        lines += [
            f"skipped: {num} x {what}: {reason}"
            for (what, reason), num in sorted(self.skipped.items())
        ]
        if self.first_unreadable:
            lines.append(f"the first row that cannot be read: {self.first_unreadable}")
        return lines + [f"note: {num} x {reason}" for reason, num in sorted(self.notes.items())]
