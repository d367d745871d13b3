"""The report of a conversion: the number of rows read, skipped and written."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from kwise.train.data.formats.table import FormatName
from kwise.train.rankings.problems import Problems

_MAX_NAMES = 30
"""The number of columns to name in one line."""
_MAX_LINES = 8
"""The number of lines for columns that are not read."""

UNREADABLE = ("row", "cannot be read (--skip-bad)")
"""The kind of item that is skipped, and the reason, for rows that fail without --skip-bad."""


@dataclass(slots=True, kw_only=True)
class ConversionReport:
    """Counts and problems, filled in while rows are converted.

    formats: the number of rows of each format.
    num_unrecognised: the number of rows of no known format.
    skipped: counts by (what, reason), see `Skipped`.
    unread: counts of the columns and keys that were not read, by path.
    merging: what an option --merge did.
    problems: of rows that cannot be read.
    """

    formats: Counter[FormatName] = field(default_factory=Counter)
    num_rows: int = 0
    num_rankings: int = 0
    num_unrecognised: int = 0
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    merging: str = ""
    problems: Problems = field(default_factory=Problems)

    @property
    def format(self) -> FormatName | None:
        """The format of most rows; None if no row was recognised."""
        return max(self.formats, key=self.formats.__getitem__) if self.formats else None

    @property
    def first_unreadable(self) -> str:
        """The problem of the first row that cannot be read, or an empty string."""
        return self.problems.first

    def format_names(self) -> str:
        """Return the names of the formats, with the number of rows of each if there are several."""
        if len(self.formats) < 2:
            return self.format.value if self.format else "no format"
        return ", ".join(f"{name.value} ({num} rows)" for name, num in self.formats.most_common())

    def lines(self, *, is_written: bool = True) -> list[str]:
        """Return the report for people; standard error gets it."""
        names = self.format_names()
        num_written = self.num_rankings if is_written else "no"
        lines = [f"{names}: {self.num_rows} rows read, {num_written} rankings written"]
        lines += [
            f"skipped: {num} x {what}: {reason}"
            for (what, reason), num in sorted(self.skipped.items())
        ]
        if UNREADABLE in self.skipped:
            lines += self.problems.lines(names, self.num_rows)
        return lines + [f"note: {remark}" for remark in self.remarks()]

    def remarks(self) -> list[str]:
        """Return remarks on merging, on how rows were read, and on what was not read."""
        remarks = [self.merging] if self.merging else []
        remarks += [f"{num} x {reason}" for reason, num in sorted(self.notes.items())]
        return remarks + self._unread_lines()

    def _unread_lines(self) -> list[str]:
        """Return a line for each count, because most columns are in every row."""
        paths_by_count = defaultdict(list)
        for path, num in sorted(self.unread.items()):
            paths_by_count[num].append(path[:60])
        lines = [
            f"{num} x not read: {_named(paths)}"
            for num, paths in sorted(paths_by_count.items(), reverse=True)
        ]
        if len(lines) > _MAX_LINES:
            rest = sorted(paths_by_count.items(), reverse=True)[_MAX_LINES - 1 :]
            paths = [path for _, paths in rest for path in paths]
            num = sum(num * len(paths) for num, paths in rest)
            lines[_MAX_LINES - 1 :] = [f"{num} x not read in some rows: {_named(paths)}"]
        return lines


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - _MAX_NAMES} more" if len(paths) > _MAX_NAMES else ""
    return ", ".join(paths[:_MAX_NAMES]) + more
