"""What became of the rows of a conversion: nothing goes silently."""

from collections import Counter
from dataclasses import dataclass, field

from kwise.train.data.formats.table import FormatName


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of the rows."""

    format: FormatName | None = None
    num_rows: int = 0
    num_rankings: int = 0
    left: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (what, reason)
    notes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    first_bad: str = ""

    def lines(self, *, is_written: bool = True) -> list[str]:
        """For people, on standard error."""
        name = self.format.value if self.format else "no format"
        lines = [
            f"{name}: {self.num_rows} rows read, {self.num_rankings if is_written else 'no'} rankings written"
        ]
        lines += [
            f"left out: {num} x {what}: {reason}"
            for (what, reason), num in sorted(self.left.items())
        ]
        lines += [f"the first row that cannot be read: {self.first_bad}"] if self.first_bad else []
        return lines + [f"note: {num} x {reason}" for reason, num in sorted(self.notes.items())]
